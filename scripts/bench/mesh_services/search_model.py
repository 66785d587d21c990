"""Faiss and filters as a step of a Triton ensemble, as in Merlin Systems. Copied as model.py, runs in the server."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # part of the server


class TritonPythonModel:
    def initialize(self, args):
        parameters = {
            name: value["string_value"] for name, value in json.loads(args["model_config"])["parameters"].items()
        }
        code = Path(parameters["code"])
        sys.path[:0] = [str(code), str(code.parents[1])]
        from mesh_services.retriever import Retriever, searchers

        settings = Path(parameters["settings"])
        self.retriever = Retriever(settings.parent, json.loads(settings.read_text()))
        self.candidates = min(int(parameters["candidates"]), self.retriever.items)
        self.pool = searchers(int(parameters["threads"]))
        nothing = np.zeros(2, np.int64)
        self.retriever.search(np.array(self.retriever.vectors[0]), nothing, nothing - 1, 100, False)

    def execute(self, requests):
        return list(self.pool.map(self.answer, requests))

    def answer(self, request):
        query, program, exclude, limits = (
            pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("query", "filter", "exclude", "search")
        )
        counts = [min(int(row[1]) or self.candidates, self.retriever.items) for row in limits]
        found = [
            self.retriever.search(query[i], program[i], exclude[i], counts[i], bool(limits[i, 0]))
            for i in range(len(query))
        ]
        outputs = [np.stack(each) for each in zip(*found, strict=True)]
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in zip(("positions", "retrieved"), outputs, strict=True)]
        )
