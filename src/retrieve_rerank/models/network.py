"""Another runtime in the place of a loaded model's network; everything around the network stays as it is.

The checkpoint is loaded and checked as ever. Then a file of the same network is looked for beside it, or exported; one
small batch must come out of both alike, and what the checkpoint's normalising layers hold must be in the file; and the
torch network is let go of before anything is scored.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers.base.modules import Transformer

from retrieve_rerank.errors import InvalidInputError, ModelError, warn_caller
from retrieve_rerank.models import onnx, openvino
from retrieve_rerank.models.backend import Session
from retrieve_rerank.models.first_token import read_all_tokens
from retrieve_rerank.models.loading import AnyModel, Checkpoint
from retrieve_rerank.models.network_files import NetworkFiles, parts
from retrieve_rerank.models.precision import Choice, Precision
from retrieve_rerank.models.settings import Backend

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OUTPUTS = {"feature-extraction": "last_hidden_state", "sequence-classification": "logits"}

# Texts whose results tell whether a file holds the same weights as the checkpoint, and how far the worst number may be
# off, as a part of the largest. Another model's file is off by about the whole; one of the model before it was trained
# further may be nearer than int8 is, so that the results alone do not tell.
_PROBE = ("the quick brown fox", "jumps over the lazy dog, and then it sleeps for a while", "a", "what is 1 + 1?")
_ADVICE = "It may be left over from the model that these weights were trained from; remove it, and another is exported"
_LAYERS = 5
_TOLERANCE = {"float32": 0.01, "bfloat16": 0.1, "int8": 0.5}


class Network(torch.nn.Module):
    """Stands where the transformer's network stood, and has a session compute.

    Args:
        session: What computes.
        config: The configuration of the network whose place it takes.
        output: What the network's result is called.
    """

    def __init__(self, session: Session, config: Any, output: str) -> None:
        super().__init__()
        self.config = config
        self.device = torch.device("cpu")
        self._session = session
        self._output = output
        # Files of other makers call the one result that there is otherwise.
        self._theirs = output if output in session.outputs else session.outputs[0]

    def forward(self, **features: Any) -> dict[str, torch.Tensor]:
        """Return the network's result, in float32, under its usual name."""
        ids = features["input_ids"]
        # A file may want an input that this tokenizer does not make: nothing masked, and one segment.
        absent = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        arrays = {name: {**absent, **features}[name].numpy() for name in self._session.inputs}
        try:
            values = self._session.run(arrays, self._theirs)
        except Exception as error:  # the runtimes' errors have no base of their own
            texts, tokens = ids.shape
            raise ModelError(f"the network cannot compute {texts} texts of {tokens} tokens: {error}") from error
        return {self._output: torch.from_numpy(values).float()}


def replace_network(
    model: AnyModel, checkpoint: Checkpoint, backend: Backend, precision: Precision, weights: str
) -> Choice:
    """Let `backend` compute the network of a model that torch has loaded in float32 on the CPU.

    Args:
        model: The loaded model; the network in it is replaced.
        checkpoint: Where it came from, and where a file of the same network may lie.
        backend: "onnx" or "openvino".
        precision: As the model's constructor takes it.
        weights: The digest of its weights, by which an export is found again.

    Returns:
        The precision it computes in, and the file that the network came from.

    Raises:
        InvalidInputError: If the model has no network that these runtimes can compute.
        MissingDependencyError: If the runtime, or what exporting needs, is not installed.
        ModelError: If there is no file and none can be made, or it does not hold the checkpoint's weights.
    """
    transformer: Any = model[0]
    kind = getattr(transformer, "transformer_task", type(transformer).__name__)
    if not isinstance(transformer, Transformer) or kind not in _OUTPUTS:
        raise InvalidInputError(
            f"backend={backend!r} computes encoders such as BERT, and {checkpoint.model!r} is none ({kind}); use "
            "backend='torch'"
        )
    output, config = _OUTPUTS[kind], transformer.config
    if output == "last_hidden_state":  # of all tokens in files of other makers
        read_all_tokens(transformer.model)
    runtime = onnx if backend == "onnx" else openvino
    features = _probe(transformer, pairs=output == "logits")
    with torch.inference_mode():
        expected = transformer.model(**features)[output].numpy()
    file = runtime.locate(NetworkFiles(checkpoint, transformer.model, features, output, weights), precision)
    traces = _traces(transformer.model)
    # A right file may have been made before the weights were rounded; and what quantises for OpenVINO may shift them.
    certain = config.dtype not in (torch.float16, torch.bfloat16) and (backend, precision) != ("openvino", "int8")
    transformer.model = torch.nn.Identity()  # two copies of the weights are never in memory at once
    choice: Choice
    session: Session
    choice, session = runtime.load(file, precision)
    if unknown := set(session.inputs) - set(_INPUTS):
        raise ModelError(
            f"the network {choice.reason} takes {', '.join(sorted(unknown))}, and only {', '.join(_INPUTS)} are there "
            "to give; remove it, and another is exported"
        )
    transformer.model = Network(session, config, output)
    transformer.model_forward_params = set(_INPUTS)  # all that there are: the file says which it takes
    values = transformer.model(**features)[output].numpy()
    _compare(values, expected, features["attention_mask"].numpy(), choice)
    _find(traces, file, choice, certain=certain)
    return choice


def _probe(transformer: Transformer, *, pairs: bool) -> dict[str, torch.Tensor]:
    features = transformer.preprocess([("what is it", text) for text in _PROBE] if pairs else list(_PROBE))
    return {name: features[name] for name in _INPUTS if name in features}


def _compare(values: npt.NDArray[Any], expected: npt.NDArray[Any], mask: npt.NDArray[Any], choice: Choice) -> None:
    if values.shape == expected.shape:
        if values.ndim == 3:  # what is computed in the places of padding means nothing
            values, expected = values[mask == 1], expected[mask == 1]
        off = float(np.abs(values - expected).max() / np.abs(expected).max())
        if off <= _TOLERANCE[choice.name]:
            return
        what = f"its results are off by {off:.0%} of the largest"
    else:
        what = f"its results have the shape {values.shape}, expected {expected.shape}"
    raise ModelError(f"the network {choice.reason} does not hold the checkpoint's weights: {what}. {_ADVICE}")


def _traces(network: torch.nn.Module) -> list[list[torch.Tensor]]:
    """Return what the first and the last four normalising layers hold, a list a layer.

    A file of these weights holds it bit for bit: quantising leaves it alone, and training moves it. Training of
    matrices alone, such as an adapter that was merged in, is not seen by it, and of int8 only where it is coarse.
    """
    layers: list[list[torch.Tensor]] = []
    for module in network.modules():
        if "Norm" in type(module).__name__:
            own = [each.detach().clone() for each in module.parameters(recurse=False) if each.ndim == 1]
            layers.append([each for each in own if bool(each.min() < each.max())])  # untrained, it tells nothing
    known = [layer for layer in layers if layer]
    return known if len(known) <= _LAYERS else [known[0], *known[1 - _LAYERS :]]


def _find(traces: Sequence[Sequence[torch.Tensor]], file: Path, choice: Choice, *, certain: bool) -> None:
    """Raise ModelError, or warn where that would be too much, unless the traces are in a file."""
    # Files in half precision hold them rounded.
    wanted = [[(each.numpy().tobytes(), each.half().numpy().tobytes()) for each in layer] for layer in traces]
    for part in parts(file):
        with part.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            wanted = [[forms for forms in layer if all(content.find(form) < 0 for form in forms)] for layer in wanted]
    # One may be missing: what depends on no text (DeBERTa's relative positions) is computed when a file is optimised.
    if sum(map(bool, wanted)) <= 1:
        return
    what = "the numbers of the checkpoint's normalising layers are not in it"
    if certain:
        raise ModelError(f"the network {choice.reason} does not hold the checkpoint's weights: {what}. {_ADVICE}")
    warn_caller(
        f"the network {choice.reason} may not hold the checkpoint's weights: {what}. A right one may lack them, too, "
        f"if it was made before these were rounded to half precision, or quantised for OpenVINO. {_ADVICE}",
        UserWarning,
    )
