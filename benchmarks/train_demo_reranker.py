"""Train the demo re-ranker: a LoRA adapter that makes a cross-encoder with one logit of all-MiniLM-L6-v2.

    python benchmarks/train_demo_reranker.py COLLECTIONS OUT [--start ADAPTER] [--minutes 60] [--work FOLDER]

COLLECTIONS holds the folders named in `SETS`, each a test collection. Only training judgements are read, or whole sets
that nothing is measured on; passages that answer a test question are never shown. A group is a question, a passage
judged relevant, and passages that the bi-encoder ranks high for it and nobody judged, some from the top, some from
deep down. The target of a group is mostly the judgement and partly (`MIXTURE`) the bi-encoder's own opinion: a
passage that nobody judged may be relevant, and where the judgements teach nothing the order stays as the first stage
has it. Needs the dev dependency group.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retrieve_rerank import BiEncoder
from retrieve_rerank.demo import demo_models
from retrieve_rerank.evaluation import load_dataset

# Collection: its training judgements, those of its test split, the most groups drawn from it.
SETS = {
    "medquad": ("qrels.train.tsv", "qrels.tsv", 3600),
    "boolq": ("qrels.train.tsv", "qrels.tsv", 2400),
    "nq-gold": ("qrels.train.tsv", "qrels.tsv", 2109),
    "squadshifts-reddit": ("qrels.train.tsv", "qrels.tsv", 2400),
    "squadshifts-amazon": ("qrels.train.tsv", "qrels.tsv", 2400),
    "squadshifts-wiki": ("qrels.train.tsv", "qrels.tsv", 1500),
    "squad2-dev": ("qrels.tsv", None, 1200),
    "selqa": ("qrels.tsv", None, 800),
}
DEPTH, TOP = 100, 20  # candidates of a question; how many of them are the top
MIXTURE, SHARPNESS = 0.4, 20.0  # the bi-encoder's share of the target; what its cosine is multiplied with
BUDGET = 4096  # padded tokens of one pass through the network


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the passage that answers it and the unjudged ones, with the bi-encoder's cosines, best first."""

    text: str
    answer: str
    answer_cosine: float
    others: tuple[str, ...]
    cosines: tuple[float, ...]


def questions(folder: Path, encoder: BiEncoder, work: Path, rng: random.Random) -> list[Question]:
    """Return the training questions of a collection; vectors are kept in `work`."""
    train, test, most = SETS[folder.name]
    dataset = load_dataset(folder, qrels=train)
    hidden = set()
    if test is not None:
        for judged in load_dataset(folder, qrels=test).judgements.values():
            hidden |= {passage for passage, score in judged.items() if score > 0}
    passages = [passage for passage in dataset.passages if passage.id not in hidden and passage.text.strip()]
    row_of = {passage.id: row for row, passage in enumerate(passages)}
    relevant = {
        query: [row_of[passage] for passage, score in judged.items() if score > 0 and passage in row_of]
        for query, judged in dataset.judgements.items()
    }
    able = sorted(query for query, rows in relevant.items() if rows)
    chosen = rng.sample(able, min(most, len(able)))
    file = work / f"{folder.name}.npy"
    if not file.is_file():
        numpy.save(file, encoder.encode_documents([passage.text for passage in passages], show_progress=True))
    vectors = torch.from_numpy(numpy.load(file))
    found = torch.from_numpy(encoder.encode_queries([dataset.queries[query] for query in chosen])) @ vectors.T
    ranked = found.topk(min(DEPTH, len(passages)), dim=1).indices.tolist()
    made = []
    for number, (query, rows) in enumerate(zip(chosen, ranked, strict=True)):
        answers = set(relevant[query])
        others = [row for row in rows if row not in answers]
        answer = rng.choice(relevant[query])
        made.append(
            Question(
                dataset.queries[query],
                passages[answer].text,
                float(found[number, answer]),
                tuple(passages[row].text for row in others),
                tuple(float(found[number, row]) for row in others),
            )
        )
    return made


def group(question: Question, size: int, rng: random.Random) -> tuple[list[str], list[float]]:
    """Return the passages of a group, the answer first, and their cosines."""
    near = rng.sample(range(min(TOP, len(question.others))), min(size - 1 - size // 3, len(question.others)))
    far = rng.sample(range(TOP, len(question.others)), min(size - 1 - len(near), max(0, len(question.others) - TOP)))
    rows = near + far
    return (
        [question.answer, *(question.others[row] for row in rows)],
        [question.answer_cosine, *(question.cosines[row] for row in rows)],
    )


def logits(network: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], longest: int) -> torch.Tensor:
    """Return the logit of each pair, in batches of similar length."""
    encoded = tokenizer(
        [query for query, _ in pairs], [text for _, text in pairs], truncation="only_second", max_length=longest
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    order = sorted(range(len(pairs)), key=lengths.__getitem__)
    parts, start = [], 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * lengths[order[end]] <= BUDGET:
            end += 1
        rows = order[start:end]
        batch = tokenizer.pad(
            {key: [values[row] for row in rows] for key, values in encoded.items()}, return_tensors="pt"
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts.append(network(**batch).logits.float()[:, 0])
        start = end
    return torch.cat(parts)[torch.tensor(order).argsort()]


def loss_of(scores: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
    """Return the loss of groups, (groups, size) each; the relevant passage is the first."""
    truth = torch.zeros_like(scores)
    truth[:, 0] = 1
    target = (1 - MIXTURE) * truth + MIXTURE * torch.softmax(SHARPNESS * cosines, dim=1)
    listwise = torch.nn.functional.cross_entropy(scores, target)
    # Pointwise as well, so that sigmoid(logit) can be read as a relevance.
    weight = torch.where(truth > 0, float(scores.shape[1] - 1), 1.0)
    return listwise + 0.3 * torch.nn.functional.binary_cross_entropy_with_logits(scores, truth, weight=weight)


def network_of(base: Path, start: Path | None) -> Any:
    """Return the base with a trainable adapter: a new one, or one that was trained before."""
    network = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
    )
    if start is not None:
        return PeftModel.from_pretrained(network, str(start), is_trainable=True)
    parts = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    head = ["classifier", "pooler"]
    settings = LoraConfig(r=32, lora_alpha=64, target_modules=parts, modules_to_save=head, task_type="SEQ_CLS")
    return get_peft_model(network, settings)


def save(network: Any, folder: Path) -> None:
    """Write the adapter, in float16."""
    network.save_pretrained(str(folder))
    weights = folder / "adapter_model.safetensors"
    save_file({name: value.half() for name, value in load_file(weights).items()}, weights)


def batches(made: Sequence[Question], count: int, rng: random.Random) -> Iterator[list[Question]]:
    """Yield the questions of each step, for ever, in a new order each time."""
    while True:
        shuffled = rng.sample(made, len(made))
        yield from (shuffled[start : start + count] for start in range(0, len(made) - count + 1, count))


def main() -> None:
    """Train and write the adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--start", type=Path, help="adapter to go on from")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--groups", type=int, default=6, help="questions of one step")
    parser.add_argument("--size", type=int, default=8, help="passages of a question")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--longest", type=int, default=192, help="tokens of a pair")
    parser.add_argument("--work", type=Path, default=Path("training"))
    arguments = parser.parse_args()
    rng = random.Random(2)
    torch.manual_seed(2)
    arguments.work.mkdir(parents=True, exist_ok=True)
    base, _ = demo_models()
    made: list[Question] = []
    with BiEncoder(base) as encoder:
        for name in SETS:
            made += questions(arguments.collections / name, encoder, arguments.work, rng)
            print(name, len(made), flush=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(base, model_max_length=512)
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    network = network_of(base, arguments.start).train()
    trained = [value for value in network.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=arguments.rate, weight_decay=0.01)
    begin, step, recent = time.monotonic(), 0, 0.0
    for some in batches(made, arguments.groups, rng):
        passed = (time.monotonic() - begin) / 60 / arguments.minutes
        if passed >= 1:
            break
        for settings in optimiser.param_groups:
            settings["lr"] = arguments.rate * min(1, (step + 1) / 100) * (1 - passed)
        groups = [group(question, arguments.size, rng) for question in some]
        pairs = [(question.text, text) for question, (texts, _) in zip(some, groups, strict=True) for text in texts]
        scores = logits(network, tokenizer, pairs, arguments.longest).view(-1, arguments.size)
        loss = loss_of(scores, torch.tensor([cosines for _, cosines in groups]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step, recent = step + 1, 0.98 * recent + 0.02 * loss.item()
        if step % 50 == 0:
            first = (scores.argmax(dim=1) == 0).float().mean().item()
            print(json.dumps({"step": step, "share": round(passed, 3), "loss": recent, "first": first}), flush=True)
        if step % 500 == 0:
            save(network, arguments.out)
    save(network, arguments.out)


if __name__ == "__main__":
    main()
