"""The Triton Python backend's view of an artifact. Exported beside `model.pt` as `model.py`; imports nothing of ours.

All it does is bind tensors: `model.pt` holds the whole network, the server batches, splits and answers.
"""

import contextlib
import fcntl
import gc
import json
import mmap
import os
import struct
import sys
import zipfile

import triton_python_backend_utils as pb_utils  # part of the server

# Huge pages under large tensors: a search reads rows all over the index. torch looks at this when it first allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Threads that wait must not take the processor from the server's own; OpenMP looks at this when torch brings it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch.utils.dlpack import from_dlpack, to_dlpack

SHARED_BYTES = 1 << 20  # from here on a tensor is worth sharing
ALIGNMENT = 64  # bytes: of torch's own tensors, and of the records in a model.pt
DTYPES = {"TYPE_FP32": torch.float32, "TYPE_INT32": torch.int32, "TYPE_INT64": torch.int64}


class TritonPythonModel:
    def initialize(self, args):
        version = os.path.join(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        torch.set_num_threads(int(parameters["INTRA_OP_THREAD_COUNT"]))
        torch.ops.load_library(os.path.join(version, "libsilvertriton_ops.so"))
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.device = torch.device(device)
        if device != "cpu":
            _require_gpu(device)
        instances = sum(group["count"] for group in config["instance_group"] if group["kind"] == "KIND_CPU")
        path = os.path.join(version, "model.pt")
        if device == "cpu" and "ranks" in parameters:  # what it has in common with the retrieval model is that's file
            models = os.path.dirname(os.path.abspath(args["model_repository"]))
            ranked = os.path.join(models, parameters["ranks"], args["model_version"], "model.pt")
            self.network = load_shared(path, *([ranked] if os.path.exists(ranked) else []))
        elif device == "cpu" and instances > 1:
            self.network = load_shared(path)
        else:  # alone, it keeps the index in memory of its own: a mapped file has no huge pages
            self.network = torch.jit.load(path, map_location=self.device)
        self.network.eval()
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        self.forward = self.network.forward  # itself: calling the module goes through Python first
        arguments = [argument.name for argument in self.forward.schema.arguments[1:]]
        if arguments != self.inputs:
            raise pb_utils.TritonModelException(f"model.pt takes {arguments}, config.pbtxt names {self.inputs}")
        # One neutral request: a network that cannot answer fails to load, and the first user does not wait for lazy
        # initialisation. On a GPU the largest batch too, of inputs of 8 entries: torch keeps the memory that it takes.
        for rows in (1,) if device == "cpu" else (1, config["max_batch_size"]):
            self._forward([_neutral(tensor, rows) for tensor in config["input"]])
        # What is loaded stays: the collector need not look through it again while a request waits.
        gc.collect()
        gc.freeze()

    def execute(self, requests):
        try:
            return self._answers(requests)
        except Exception as error:
            if self.device.type == "cuda":
                _end_if_lost(self.device)
            if len(requests) > 1:  # one alone fails, not those that happen to be batched with it
                return [response for request in requests for response in self.execute([request])]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(_reason(error)))]

    def _answers(self, requests):
        # Tensors travel as DLPack: the wheel's backend was compiled for numpy 1, and takes arrays of numpy 2 for empty.
        # The server batches requests of equal shapes only, so they stack. One of 0 or 2^32 rows, which it should
        # refuse, comes without that dimension and does not.
        rows = [pb_utils.get_input_tensor_by_name(request, self.inputs[0]).shape()[0] for request in requests]
        inputs = [self._stacked([_received(request, name) for request in requests]) for name in self.inputs]
        outputs = [output.split(rows) for output in self._forward(inputs)]
        responses = []
        for parts in zip(*outputs, strict=True):
            tensors = [
                pb_utils.Tensor.from_dlpack(name, to_dlpack(part))
                for name, part in zip(self.outputs, parts, strict=True)
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
        return responses

    def _stacked(self, tensors):
        if len(tensors) == 1:
            return tensors[0]
        if any(tensor.is_cuda for tensor in tensors):  # some may be: FORCE_CPU_ONLY_INPUT_TENSORS is "no"
            tensors = [tensor.to(self.device) for tensor in tensors]
        return torch.cat(tensors)

    def _forward(self, inputs):
        # Without the optimising executor the first requests are as fast as later ones: the time is in our operators.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            outputs = self.forward(*(tensor.to(self.device) for tensor in inputs))
            return [output.cpu().contiguous() for output in outputs]  # the server looks at no stride of rows


def _received(request, name):
    return from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())


def load_shared(path, *others):
    """Load a network whose large tensors are one copy in memory for all processes that load it so.

    `others`: files that may hold some of its tensors; those become one copy with what is loaded from there.
    """
    with open(path, "rb") as file:
        # They load one after the other: each has a copy of its own until it shares.
        with contextlib.suppress(OSError):  # not every file system locks
            fcntl.flock(file, fcntl.LOCK_EX)
        network = torch.jit.load(path, map_location="cpu")
        for file_of_tensors in (path, *others):
            share(network, file_of_tensors)
    return network


def share(network, path):
    """Give the large tensors of `network` up for the same bytes mapped from the file `path`.

    However many processes do so, they hold them once, in the page cache. A tensor whose bytes are no record of the
    file stays as it is.
    """
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants it writable; nothing writes
    records: dict[int, list[int]] = {}  # where those of a size begin
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            name_and_extra = sum(struct.unpack_from("<HH", mapped, record.header_offset + 26))
            start = record.header_offset + 30 + name_and_extra
            if record.compress_type == zipfile.ZIP_STORED and start % ALIGNMENT == 0:
                records.setdefault(record.file_size, []).append(start)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            own = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
            for start in records.get(len(own), []) if len(own) >= SHARED_BYTES else []:
                stored = torch.frombuffer(mapped, dtype=torch.uint8, count=len(own), offset=start)
                if torch.equal(own, stored):
                    tensor.set_(stored.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
                    break


def _require_gpu(device):
    """Raise where the neutral request would fail for a reason that its error does not tell."""
    if not torch.cuda.is_available():
        raise pb_utils.TritonModelException(
            f"{device} is asked for, but torch {torch.__version__} finds no CUDA device: install a torch for CUDA and "
            "a driver that knows it, or serve without --gpu"
        )
    if not torch.ops.silvertriton.cuda_targets():
        raise pb_utils.TritonModelException(
            f"{device} is asked for, but the operators of this version were compiled for CPUs alone: export it where "
            "there is nvcc, or serve without --gpu"
        )


def _end_if_lost(device):
    """End this process where CUDA answers nothing more in it, as after an illegal access: another may be started."""
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        print(f"error: {device} is lost to this process: {_reason(error)}", file=sys.stderr, flush=True)
        os._exit(1)


def _reason(error):
    """One line of an error, without a traceback: the last, but of a GPU's the one that is no advice to programmers."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return next((line for line in lines if "CUDA error" in line), lines[-1])


def _neutral(tensor, rows):
    """Zeros for rows of an input: no filter, default settings, users and items that need not exist."""
    dims = [8 if int(dim) < 0 else int(dim) for dim in tensor["dims"]]
    return torch.zeros((rows, *dims), dtype=DTYPES[tensor["data_type"]])
