"""How values of a metric read in text, tables and figures. Light: the command line's help imports it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How values of a metric read.

    Args:
        name: as in the column `metric`.
        higher_is_better: whether a rise is a gain.
        percent: whether values are fractions, shown times 100; differences are then points.
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
        """What stands over a column or beside an axis: "accuracy, %"."""
        return f"{self.words}, %" if self.percent else self.words

    @property
    def unit(self) -> str:
        """Of differences, in the plural: "points", or nothing where values have no unit."""
        return "points" if self.percent else ""

    @property
    def factor(self) -> float:
        """From a row's value to the number shown."""
        return 100.0 if self.percent else 1.0

    @property
    def sign(self) -> int:
        """1 where a rise is a gain, otherwise -1."""
        return 1 if self.higher_is_better else -1

    def show(self, value: float) -> str:
        """A row's value in text.

        Example:
            >>> Scale().show(0.7123), Scale("mean_squared_error", higher_is_better=False, percent=False).show(0.01234)
            ('71.2 %', '0.0123')
        """
        return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"


#: How the metric of single-label classification reads.
ACCURACY = Scale()
