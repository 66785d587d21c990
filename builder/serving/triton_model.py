"""The Triton Python backend's view of an artifact. Exported beside `model.pt` as `model.py`; imports nothing of ours.

All it does is bind tensors: `model.pt` holds the whole network, the server batches, splits and answers.
"""

import json
import os

import numpy as np
import torch
import triton_python_backend_utils as pb_utils  # part of the server


class TritonPythonModel:
    def initialize(self, args):
        version = os.path.join(args["model_repository"], args["model_version"])
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        torch.set_num_threads(int(parameters["INTRA_OP_THREAD_COUNT"]))
        torch.ops.load_library(os.path.join(version, "libsilvertriton_ops.so"))
        device = f"cuda:{args['model_instance_device_id']}" if args["model_instance_kind"] == "GPU" else "cpu"
        self.device = torch.device(device)
        self.network = torch.jit.load(os.path.join(version, "model.pt"), map_location=self.device).eval()
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]
        arguments = [argument.name for argument in self.network.forward.schema.arguments[1:]]
        if arguments != self.inputs:
            raise pb_utils.TritonModelException(f"model.pt takes {arguments}, config.pbtxt names {self.inputs}")
        # One neutral request: a network that cannot answer fails to load, and the first user does not wait for lazy
        # initialisation.
        self._forward([_neutral(tensor) for tensor in config["input"]])

    def execute(self, requests):
        # The server batches requests of equal shapes only, so they stack.
        inputs = [
            np.concatenate([pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests])
            for name in self.inputs
        ]
        arrays = self._forward(inputs)
        responses, start = [], 0
        for request in requests:
            end = start + pb_utils.get_input_tensor_by_name(request, self.inputs[0]).shape()[0]
            rows = [array[start:end] for array in arrays]
            tensors = [pb_utils.Tensor(name, array) for name, array in zip(self.outputs, rows, strict=True)]
            responses.append(pb_utils.InferenceResponse(output_tensors=tensors))
            start = end
        return responses

    def _forward(self, inputs):
        # Without the optimising executor the first requests are as fast as later ones: the time is in our operators.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            outputs = self.network(*(torch.from_numpy(array).to(self.device) for array in inputs))
        return [output.cpu().numpy() for output in outputs]


def _neutral(tensor):
    """Zeros for one row of an input: no filter, default settings, a user and items that need not exist."""
    dims = [8 if int(dim) < 0 else int(dim) for dim in tensor["dims"]]
    return np.zeros((1, *dims), dtype=pb_utils.triton_string_to_numpy(tensor["data_type"]))
