"""Train the demo tokenizer and the demo model from ``corpus.jsonl``.

::

    python -m inflcli.demo.train --corpus corpus.jsonl --out model

The model is a Llama of about 4.5 million parameters. Two ordinary cores train it in well under an
hour in float32, and in some minutes where the processor multiplies bfloat16 matrices in hardware.
Every document is one sequence from position 0, without BOS, and ends in ``<|endoftext|>``. Seeds
are fixed; with the same versions on the same machine the result is the same.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .probes import make_probes, probe_accuracy

END = "<|endoftext|>"
MAX_TOKENS = 256


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose only special token marks the end of a document."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, model_max_length=512,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def new_model(vocab_size: int, args: argparse.Namespace) -> LlamaForCausalLM:
    """Build the untrained model; tied embeddings keep it small."""
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=args.hidden, intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
        attention_dropout=0.0, use_cache=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def crop(text: str, rng: random.Random, rate: float) -> str:
    """With probability ``rate`` begin at a later sentence.

    A prompt is a short text at position 0. If sentences from the middle of paragraphs are never
    seen there, the model knows most facts only after the words that usually precede them.
    """
    starts = [match.end() for match in re.finditer(r"\. (?=[A-Z])", text)]
    if starts and rng.random() < rate:
        return text[rng.choice(starts) :]
    return text


def epoch_batches(
    texts: list[str],
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    args: argparse.Namespace,
) -> list[list[list[int]]]:
    """Tokenize one pass over the corpus and group sequences of similar length."""
    cropped = [crop(text, rng, args.crop_rate) for text in texts]
    ids = [s[: MAX_TOKENS - 1] + [0] for s in tokenizer(cropped)["input_ids"]]
    ids.sort(key=lambda s: len(s) + rng.uniform(-8, 8))
    batches = [ids[i : i + args.batch_size] for i in range(0, len(ids), args.batch_size)]
    rng.shuffle(batches)
    return batches


def collate(batch: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right, to a multiple of 16 so that few shapes occur.

    Attention is causal, so padding needs no mask, only ignored labels.
    """
    width = -(-max(len(s) for s in batch) // 16) * 16
    inputs = torch.tensor([s + [0] * (width - len(s)) for s in batch])
    labels = torch.tensor([s + [-100] * (width - len(s)) for s in batch])
    return inputs, labels


def fast_bfloat16() -> bool:
    """Whether the processor has matrix units for bfloat16; without them float32 is faster."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(check and check())


def fit(
    model: LlamaForCausalLM,
    texts: list[str],
    tokenizer: PreTrainedTokenizerFast,
    args: argparse.Namespace,
) -> tuple[int, float]:
    """Train with AdamW and a cosine schedule; return the tokens seen and the last epoch's loss."""
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decay, "weight_decay": args.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)
    steps = args.epochs * math.ceil(len(texts) / args.batch_size)

    def rate(step: int) -> float:
        cosine = (1 + math.cos(math.pi * step / steps)) / 2
        return min((step + 1) / 150, 0.01 + 0.99 * cosine)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rng = random.Random(args.seed)
    use_bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and fast_bfloat16())
    start, seen, mean = time.time(), 0, 0.0
    for epoch in range(args.epochs):
        losses, counts = [], []
        for batch in epoch_batches(texts, tokenizer, rng, args):
            inputs, labels = collate(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16):
                loss = model(input_ids=inputs, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            seen += inputs.numel()
            losses.append(loss.item())
            counts.append(int((labels >= 0).sum()))
        mean = sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)
        clock = f"{time.time() - start:.0f} s"
        print(f"epoch {epoch + 1:3d}  loss {mean:.4f}  {seen} tokens  {clock}", flush=True)
    return seen, mean


def parse_args() -> argparse.Namespace:
    """Command line; the defaults are those of the model that comes with inflcli."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, default=here / "corpus.jsonl")
    parser.add_argument("--out", type=Path, default=here / "model")
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--batch-size", type=int, default=16, help="documents in a batch")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--crop-rate", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    return parser.parse_args()


def main() -> None:
    """Train, save in float16, reload what was saved and print how many facts it knows."""
    args = parse_args()
    torch.manual_seed(args.seed)
    documents = [json.loads(line) for line in args.corpus.read_text(encoding="utf-8").splitlines()]
    texts = [document["text"] for document in documents]
    tokenizer = train_tokenizer(texts, args.vocab_size)
    lengths = [len(s) + 1 for s in tokenizer(texts)["input_ids"]]
    model = new_model(len(tokenizer), args)
    size = sum(p.numel() for p in model.parameters())
    print(f"{len(texts)} documents, {sum(lengths)} tokens (longest {max(lengths)})")
    print(f"{size} parameters")
    seen, loss = fit(model, texts, tokenizer, args)
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{seen} tokens seen, {6 * size * seen:.3g} FLOPs, last loss {loss:.4f}")
    saved = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval()
    for kind, (right, total) in probe_accuracy(saved, tokenizer, make_probes(documents)).items():
        print(f"{kind:10s} {right}/{total} right")


if __name__ == "__main__":
    main()
