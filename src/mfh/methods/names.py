"""The shipped distillation methods by name. Imports no torch, because the command line's help needs the names."""

#: Name of a method, as arms and `distill` take it -> module and class in `mfh.methods`.
SHIPPED = {
    "kd": "kd:KD",
    "dkd": "dkd:DKD",
    "dist": "dist:DIST",
    "fitnets": "fitnets:FitNets",
    "vid": "vid:VID",
    "simkd": "simkd:SimKD",
    "rkd": "rkd:RKD",
    "sp": "sp:SP",
    "mad": "mad:MAD",
    "crd": "crd:CRD",
    "queue": "queue:Queue",
    "fd-cmkd": "fd_cmkd:FDCMKD",
    "c2kd": "c2kd:C2KD",
    "attainable": "attainable:Attainable",
}
