"""What endpoints serve, and which model of theirs a request goes to. No IO: the steps are those of `client._core`.

Beside a model there may be a canary (`client.schema.CANARY_SUFFIX`), a second version for a share of the requests.
Endpoints are asked for theirs every few seconds. During a rollout there is also a ranking model beside, of the version
that the retrieval model has already changed to or is about to.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b
from time import monotonic

import numpy as np

from client._balancer import Balancer, Endpoint
from client._codec import Codec
from client._ranking import RankingCodec
from client._steps import ReadConfig, Served, Steps
from client.contract import Contract
from client.errors import DeadlineExceeded, ModelNotFound, ModelUnavailable, SchemaError, SchemaMismatch, invalid_value
from client.schema import CANARY_SUFFIX, RANKING_SUFFIX, SHARE_PARAMETER, Schema
from client.transport import Headers, ModelConfig

SCHEMA_PARAMETER = "schema"
SNAPSHOT_PARAMETER = "snapshot"  # the same for the retrieval model and the ranking model of one export
CANARY_REREAD = 3.0  # seconds after which an endpoint is asked again for its canary
_CODECS_KEPT = 8  # schemas in use at once, by endpoints in the middle of a rollout and by both models


def drawn(key: str | int | None) -> float:
    """Where a request stands among all, 0 to 1: those below a canary's share go there. Always the same for a key.

    Raises `InvalidValue` for one that is neither text nor an integer.
    """
    if key is None:
        return random.random()
    if isinstance(key, bool) or not isinstance(key, str | int | np.integer):
        raise invalid_value("key", key, "a string or an integer, or None")
    return int.from_bytes(blake2b(str(key).encode("utf-8", "surrogatepass"), digest_size=7).digest(), "little") / 2**56


class Serving:
    """What is known of the endpoints' models. Threads may share it.

    `name`: of the client, for messages. `version`: of the model, as text; "": the one that the server chooses.
    `max_filter_words`: the client's own limit. `device`: see `Codec`.
    """

    def __init__(
        self, name: str, balancer: Balancer, model: str, version: str, max_filter_words: int, device: int | None
    ) -> None:
        self._name = name
        self._balancer = balancer
        self._model = model
        self._canary = model + CANARY_SUFFIX
        self._version = version
        self._max_filter_words = max_filter_words
        self._device = device
        self._codecs: dict[tuple[str, Contract, type], Codec | RankingCodec] = {}

    def is_canary(self, model: str) -> bool:
        return model in (self._canary, self._canary + RANKING_SUFFIX)

    def forget_canary(self, endpoint: Endpoint) -> None:
        """After it was found to be gone."""
        endpoint.share = 0.0
        for model in (self._canary, self._canary + RANKING_SUFFIX):
            endpoint.served.pop(model, None)

    def left(self, deadline: float) -> float:
        left = deadline - monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"{self._name}: the time was over before the whole call was sent; allow more with timeout="
            )
        return left

    def routed(
        self, endpoint: Endpoint, suffix: str, draw: float, deadline: float, headers: Headers
    ) -> Steps[tuple[str, Served]]:
        """The model that a request goes to, and what it serves. `suffix`: "", or that of the ranking model.

        Of a client with a `version`, whichever model has it, else the canary for a `draw` below its share.
        """
        model, canary = self._model + suffix, self._canary + suffix
        if self._version:
            if model not in endpoint.served:
                model = yield from self._with_version(endpoint, model, canary, deadline, headers)
        else:
            if model not in endpoint.served:
                yield from self.read(endpoint, model, deadline, headers)
            if monotonic() - endpoint.canary_read_at > CANARY_REREAD:
                yield from self._read_canary(endpoint, deadline, headers)
            if draw < endpoint.share:
                model = canary
        served = endpoint.served.get(model)
        if served is None or not served.trusted():
            try:
                served = yield from self.read(endpoint, model, deadline, headers)
            except ModelUnavailable:
                if not self.is_canary(model):
                    raise
                self.forget_canary(endpoint)
                return (yield from self.routed(endpoint, suffix, draw, deadline, headers))
        if suffix:
            return (yield from self._of_one_export(endpoint, model, served, deadline, headers))
        return model, served

    def read(
        self, endpoint: Endpoint, model: str, deadline: float, headers: Headers, *, version: str = ""
    ) -> Steps[Served]:
        """Read the model's schema. Two calls may do so at once: the work is wasted, the result the same."""
        step = ReadConfig(endpoint, model, self.left(deadline), version or self._version, headers)
        try:
            config: ModelConfig = yield step
        except Exception as error:
            # That a version or a canary is gone, or that there is no ranking model, says nothing of the endpoint.
            gone = isinstance(error, ModelUnavailable) and (version or self.is_canary(model))
            if not (gone or (isinstance(error, ModelNotFound) and model != self._model)):
                self._balancer.report(endpoint, error)
            raise
        self._balancer.report(endpoint, None)
        text = config.parameters.get(SCHEMA_PARAMETER)
        if not text:
            raise SchemaMismatch(
                f"model {model!r} at {endpoint.name} has no parameter {SCHEMA_PARAMETER!r} in its configuration: "
                "it is no SilverTriton artifact; check model="
            )
        codec = self._codec(text, config.parameters, model, endpoint)
        snapshot = config.parameters.get(SNAPSHOT_PARAMETER, "")
        before = endpoint.served.get(model)
        known = dict(before.snapshots) if before is not None and before.codec is codec else {}
        if version:
            known[version] = snapshot
        served = Served(codec, snapshot, max(1, config.max_batch_size), monotonic(), known)
        endpoint.served[model] = served
        if model == self._canary and not self._version:  # whoever wants a version goes by no share
            endpoint.share = _share(config.parameters.get(SHARE_PARAMETER))
        return served

    def confirmed(
        self, endpoint: Endpoint, model: str, version: str, deadline: float, headers: Headers
    ) -> Steps[Served | None]:
        """What is served under the version that answered; None if it is gone before its schema was read."""
        served = endpoint.served.get(model)
        if served is not None and (not version or served.is_of(version)):
            return served
        try:
            return (yield from self.read(endpoint, model, deadline, headers, version=version))
        except ModelUnavailable:
            return None

    def _codec(self, text: str, parameters: Mapping[str, str], model: str, endpoint: Endpoint) -> Codec | RankingCodec:
        kind = Codec if model in (self._model, self._canary) else RankingCodec
        try:
            contract = Contract.read(parameters)
            contract = replace(contract, max_filter_words=min(contract.max_filter_words, self._max_filter_words))
            codec = self._codecs.get((text, contract, kind))
            if codec is None:
                made = kind(Schema.from_json(text), contract, self._device)
                if len(self._codecs) >= _CODECS_KEPT:
                    self._codecs.clear()
                codec = self._codecs.setdefault((text, contract, kind), made)  # threads that read at once get the same
        except SchemaError as error:
            raise SchemaError(f"model {model!r} at {endpoint.name}: {error}") from error
        return codec

    def _with_version(
        self, endpoint: Endpoint, model: str, canary: str, deadline: float, headers: Headers
    ) -> Steps[str]:
        """The model or its canary, whichever has the client's version."""
        if canary in endpoint.served:
            return canary
        try:
            yield from self.read(endpoint, model, deadline, headers)
        except ModelUnavailable as error:
            try:
                yield from self.read(endpoint, canary, deadline, headers)
            except ModelUnavailable:
                raise error from None
            return canary
        return model

    def _read_canary(self, endpoint: Endpoint, deadline: float, headers: Headers) -> Steps[None]:
        before, endpoint.canary_read_at = endpoint.canary_read_at, monotonic()  # the others need not wait for this one
        try:
            yield from self.read(endpoint, self._canary, deadline, headers)
        except (ModelUnavailable, SchemaError, SchemaMismatch):  # one that this client cannot read is none for it
            self.forget_canary(endpoint)
        except BaseException:
            endpoint.canary_read_at = before
            raise

    def _of_one_export(
        self, endpoint: Endpoint, model: str, ranking: Served, deadline: float, headers: Headers
    ) -> Steps[tuple[str, Served]]:
        """The ranking model to ask. Where the retrieval model is used too, it must be of the same snapshot.

        In the middle of a rollout only one of both has changed; the one beside is of the version to come.
        """
        of, beside = model.removesuffix(RANKING_SUFFIX), self._canary + RANKING_SUFFIX
        retrieval = endpoint.served.get(of)
        if retrieval is None or retrieval.snapshot == ranking.snapshot:
            return model, ranking
        other = endpoint.served.get(beside)
        if other is not None and other.snapshot == retrieval.snapshot:
            return beside, other
        for again in (False, True):  # the rollout may end between the readings
            if again or ranking.read_at < retrieval.read_at:
                ranking = yield from self.read(endpoint, model, deadline, headers)
            retrieval = yield from self.read(endpoint, of, deadline, headers)
            if retrieval.snapshot == ranking.snapshot:
                return model, ranking
            try:
                other = yield from self.read(endpoint, beside, deadline, headers)
            except ModelUnavailable:
                continue
            if other.snapshot == retrieval.snapshot:
                return beside, other
        raise SchemaMismatch(
            f"{model!r} at {endpoint.name} is of another export than {of!r} "
            f"(snapshots {ranking.snapshot[:12]!r} and {retrieval.snapshot[:12]!r}); serve both of one"
        )


def _share(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0  # not written by us: whoever made it a canary of its own does not want requests sent there
