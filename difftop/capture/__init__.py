"""A function of tensors, recorded once per shape and replayed without Python: CUDA graphs on a GPU, a tape on a CPU."""

from difftop.capture.cuda import CudaBackend
from difftop.capture.graphs import MODES, Backend, CaptureError, Graphs, Input
from difftop.capture.tape import TapeBackend

__all__ = ["MODES", "Backend", "CaptureError", "CudaBackend", "Graphs", "Input", "TapeBackend"]
