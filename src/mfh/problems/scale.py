"""How to show a metric's values in text, tables and figures. No torch here: the command line's help imports it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How to show the values of a metric.

    Args:
        name: The metric's name, as in the column `metric` of a study's table.
        higher_is_better: Whether a higher value is better.
        percent: Whether values are fractions that are shown times 100. Their differences are then called points.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    percent: bool = True

    @property
    def words(self) -> str:
        """The name in running text: "mean iou"."""
        return self.name.replace("_", " ")

    @property
    def title(self) -> str:
        """The title of a column or an axis: "accuracy, %"."""
        return f"{self.words}, %" if self.percent else self.words

    @property
    def unit(self) -> str:
        """The unit of differences, in the plural: "points", or an empty string where values have no unit."""
        return "points" if self.percent else ""

    @property
    def factor(self) -> float:
        """The factor from a row's value to the number shown: 100 for fractions, otherwise 1."""
        return 100.0 if self.percent else 1.0

    @property
    def sign(self) -> int:
        """1 if a higher value is better, otherwise -1."""
        return 1 if self.higher_is_better else -1

    def within(self, mean: float, low: float, high: float) -> tuple[float, float]:
        """The ends of the t interval of a mean as shown, which may lie beyond what a fraction can be.

        Example:
            >>> Scale().within(98.0, 95.0, 101.0), Scale(percent=False).within(98.0, 95.0, 101.0)
            ((95.0, 100.0), (95.0, 101.0))
        """
        if not self.percent:
            return low, high
        return max(low, min(mean, 0.0)), min(high, max(mean, 100.0))

    def show(self, value: float) -> str:
        """A row's value as text.

        Example:
            >>> Scale().show(0.7123), Scale("mean_squared_error", higher_is_better=False, percent=False).show(0.01234)
            ('71.2 %', '0.0123')
        """
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"


#: How to show the metric of single-label classification.
ACCURACY = Scale()
