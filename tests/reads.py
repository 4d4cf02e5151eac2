"Which values of tensors does a piece of code look at? Each look is a wait where the tensor is on another device."

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

OPERATIONS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "bincount", "_unique2", "equal")
FUNCTIONS = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


class _Functions(TorchFunctionMode):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if (name := getattr(function, "__name__", "")) in FUNCTIONS:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


class Reads(TorchDispatchMode):
    "`with Reads() as reads: ...`; `reads.seen` are the names of what looked at values, masks as an index included."

    def __init__(self):
        super().__init__()
        self.seen = []
        self.functions = _Functions(self.seen)

    def __enter__(self):
        self.functions.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.functions.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1].split(".")[0]
        masks = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in OPERATIONS or masks:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))
