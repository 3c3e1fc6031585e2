"""What a user would run instead: engines for the same network, on the same patches or on a whole image.

A peer takes the model, the precision and an example of its input ``[N, 3, h, w]``. It returns the function to call.
"""

from __future__ import annotations

import copy
import importlib.util
import io
from collections.abc import Callable

import torch
from reference import literal_forward, literal_merge, literal_split
from torch import Tensor, nn

NEVER = 2.0  # a boundary that no prediction reaches, because tanh stays below 1
PATCH, STEP = 48, 46
Run = Callable[[Tensor], Tensor]


class Unavailable(Exception):
    """Why a row cannot run here."""


class Whole(nn.Module):
    """The network at full depth, for engines that have no exits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, patches: Tensor) -> Tensor:
        """``[N, 3, h, w]`` to ``[N, 3, s * h, s * w]``."""
        return self.model(patches)


def authors(model: nn.Module, dtype: torch.dtype, pictures: Tensor) -> Run:
    """The test loop of the paper's authors. It is always float32, as they ran it."""
    if not hasattr(model, "exit_interval") or not hasattr(model, "tail"):
        raise Unavailable("the literal test loop is written for EDSR's frame")
    return lambda patches: literal_forward(model, patches, NEVER)[0]


def authors_on_a_picture(model: nn.Module, scale: int, boundary: float = NEVER) -> Run:
    """The paper's way to upscale whole images: patches of 48x48 pixels every 46 pixels, averaged where they overlap.

    Pixels beyond the last whole patch are lost.
    """

    def run(image: Tensor) -> Tensor:
        rows, columns = ((side - PATCH) // STEP + 1 for side in image.shape[2:])
        pictures = literal_forward(model, literal_split(image, PATCH, STEP), boundary)[0]
        return literal_merge(pictures, rows, columns, STEP * scale)

    return run


def torch_eager(model: nn.Module, dtype: torch.dtype, pictures: Tensor) -> Run:
    """PyTorch, channels_last."""
    network = copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last)
    return lambda patches: network(patches.to(dtype, memory_format=torch.channels_last)).float()


def torch_compile(model: nn.Module, dtype: torch.dtype, pictures: Tensor) -> Run:
    """torch.compile of the network, channels_last."""
    network = torch.compile(copy.deepcopy(model).to(dtype).to(memory_format=torch.channels_last))
    return lambda patches: network(patches.to(dtype, memory_format=torch.channels_last)).float()


def onnxruntime(model: nn.Module, dtype: torch.dtype, pictures: Tensor) -> Run:
    """ONNX Runtime's CPU provider with all graph optimisations."""
    _require("onnxruntime", "onnx", "onnxscript")
    if dtype != torch.float32:
        raise Unavailable(f"its CPU provider has no convolutions in {dtype}")
    import onnxruntime as ort

    example, file = torch.rand(2, *pictures.shape[1:]), io.BytesIO()
    shapes = {"patches": {0: torch.export.Dim("n", min=1, max=4096)}}
    torch.onnx.export(Whole(model), (example,), dynamic_shapes=shapes).save(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda patches: torch.from_numpy(session.run(None, {name: patches.numpy()})[0])


def openvino(model: nn.Module, dtype: torch.dtype, pictures: Tensor) -> Run:
    """OpenVINO's CPU plugin at the given precision: one picture per request, one request at a time per thread."""
    _require("openvino")
    import openvino as ov

    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise Unavailable("its CPU plugin has no bf16 on this CPU")
    shape = (1, *pictures.shape[1:])
    converted = ov.convert_model(Whole(model), example_input=torch.rand(shape), input=list(shape))
    threads = torch.get_num_threads()
    streams = min(threads, len(pictures))
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": streams,
    }
    compiled = core.compile_model(converted, "CPU", settings)
    queue = ov.AsyncInferQueue(compiled, streams)

    def run(patches: Tensor) -> Tensor:
        upscaled: list[Tensor] = [patches] * len(patches)

        def keep(request: object, i: int) -> None:
            upscaled[i] = torch.from_numpy(request.get_output_tensor().data.copy())

        queue.set_callback(keep)
        for i, patch in enumerate(patches):
            queue.start_async({0: patch[None].numpy()}, i)
        queue.wait_all()
        return torch.cat(upscaled)

    return run


def _require(*packages: str) -> None:
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise Unavailable(f"pip install {' '.join(absent)}")


PEERS = {
    "authors' eager forward": authors,
    "torch eager channels_last": torch_eager,
    "torch.compile": torch_compile,
    "ONNX Runtime": onnxruntime,
    "OpenVINO": openvino,
}
