"""Transcribing a split and scoring it: the encoder runs once for loss and transcript, shortest batches last.

The batches are shared out among the ranks, and scored as those of one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainingArguments, WhisperForConditionalGeneration

from asr_fine_tuner.batches import IGNORED_LABEL, Batch, ClipDataset, Collator
from asr_fine_tuner.errors import PermanentError
from asr_fine_tuner.evaluation import Evaluation, generation_limit
from asr_fine_tuner.labels import LabelEncoder
from asr_fine_tuner.metrics import ErrorRateMetric, Scores, error_rate_metric
from asr_fine_tuner.progress import progress_bar
from asr_fine_tuner.ranks import Ranks
from asr_fine_tuner.stop import raise_if_stopped

logger = logging.getLogger(__name__)


def token_loss(
    outputs: Mapping[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross entropy summed over the labels of a micro batch, over the labels of the whole effective batch.

    Whisper's own loss is a mean over the micro batch, and its forward takes any keyword, so that the trainer believes
    the loss to be scaled for gradient accumulation when it is not: gradients would grow with grad_accum_steps.
    """
    logits = outputs["logits"]
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED_LABEL).sum())


@dataclass(frozen=True, slots=True)
class TranscribedBatch:
    """number: of the batch among all. indices: of its clips among all. loss: summed over `n_labels` labels."""

    number: int
    indices: list[int]
    transcripts: list[str]
    loss: float
    n_labels: int


class Transcriber:
    """Transcribes and scores splits with a model as it is at that time."""

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        args: Seq2SeqTrainingArguments,
        accelerator: Accelerator,
        collator: Collator,
        labels: LabelEncoder,
        text_language: str,
        scratch: Path,
        ranks: Ranks,
    ) -> None:
        """args: `per_device_eval_batch_size` clips are transcribed at once, to `generation_max_length` tokens at most.
        text_language: Whisper's code of the language of the transcripts.
        scratch: where predictions are kept until they are scored; an interrupted evaluation leaves them there.
        """
        self.scratch = scratch
        self._model, self._args, self._accelerator, self._collator = model, args, accelerator, collator
        self._labels, self._text_language, self._ranks = labels, text_language, ranks

    def assess(self, clips: ClipDataset, what: str) -> Evaluation:
        """Transcribe and score every clip, in smaller batches when a device cannot hold `eval_batch_size` clips.

        Raises:
            InterruptedJob: SIGTERM or SIGINT at any rank, seen after each batch.
            PermanentError: out of memory with one clip in a batch.
        """
        while True:
            try:
                return self._assess(clips, what)
            except torch.OutOfMemoryError as error:
                batch_size = self._args.per_device_eval_batch_size
                if batch_size == 1:
                    raise PermanentError(
                        given="evaluation is out of memory with one clip in a batch",
                        expected="a device that holds the model, its gradients and Adam's two moments",
                        action="try --freeze_encoder true, a smaller model or a larger device",
                    ) from error
            self._args.per_device_eval_batch_size = batch_size // 2
            logger.warning("out of memory: evaluation goes on with %d clips in a batch", batch_size // 2)
            torch.cuda.empty_cache()

    def batches(self, clips: ClipDataset) -> DataLoader[Batch]:
        """This rank's share. Batches are the same for any number of ranks, so that their transcripts are, too."""
        positions, batch_size = range(len(clips)), self._args.per_device_eval_batch_size
        batches = [list(positions[begin : begin + batch_size]) for begin in range(0, len(positions), batch_size)]
        return DataLoader(
            clips,
            batch_sampler=batches[self._ranks.rank :: self._ranks.size],
            collate_fn=self._collator,
            pin_memory=self._args.dataloader_pin_memory,
        )

    def _assess(self, clips: ClipDataset, what: str) -> Evaluation:
        began = time.monotonic()
        limit = generation_limit(
            clips.longest_labels - self._labels.prompt_length,
            self._args.generation_max_length,
            self._model.config.max_target_positions,
            self._labels.prompt_length,
        )
        with self._ranks.together():
            metric = self._new_metric() if self._ranks.first else None
            own = self._transcribe_share(clips, what, limit, metric)
        shares = self._ranks.gather(own)
        scores = self._ranks.from_first(lambda: _scores(metric, shares[1:], clips))
        # In the order of the batches, whoever had them: the loss has the same bits for any number of ranks.
        done = sorted((batch for share in shares for batch in share), key=lambda batch: batch.number)
        loss = sum(batch.loss for batch in done) / sum(batch.n_labels for batch in done)
        predictions = [""] * len(clips)
        for batch in done:
            for index, transcript in zip(batch.indices, batch.transcripts, strict=True):
                predictions[index] = transcript
        return Evaluation(scores, loss, predictions, limit, time.monotonic() - began)

    def _transcribe_share(
        self, clips: ClipDataset, what: str, limit: int, metric: ErrorRateMetric | None
    ) -> list[TranscribedBatch]:
        done: list[TranscribedBatch] = []
        rank, size, left = self._ranks.rank, self._ranks.size, len(clips)
        self._model.eval()
        # A loader draws a seed for workers it does not have; masks and dropout of training must not depend on it.
        with torch.random.fork_rng(devices=[]), progress_bar(what, len(clips), "clips") as bar:
            for turn, batch in enumerate(self.batches(clips)):
                done.append(self._transcribe(batch, rank + turn * size, limit))
                _add(done[-1:], clips, metric)
                # The other ranks have come about as far.
                transcribed = min(size * len(done[-1].indices), left)
                left -= transcribed
                bar.advance(transcribed)
                raise_if_stopped("the evaluation was left")
                if self._ranks.someone_failed():
                    break
        return done

    @torch.no_grad()
    def _transcribe(self, batch: Batch, number: int, max_new_tokens: int) -> TranscribedBatch:
        """The summed cross entropy of the labels, and the transcripts.

        The encoder runs once for both, and one autocast context spans the whole, so that trained weights are
        cast once and not at every decoding step. The trainer wraps only the model's forward, and only once it trains.
        """
        model, device = self._model, self._args.device
        # Features travel to the device in float16, half the bytes; the model takes its own type or autocasts.
        features = batch["input_features"].to(device).to(model.dtype)
        with self._accelerator.autocast():
            encoded = model.get_encoder()(features)
            outputs = model(encoder_outputs=encoded, decoder_input_ids=batch["decoder_input_ids"].to(device))
            loss = token_loss(outputs, batch["labels"].to(device), 1)
            tokens = model.generate(
                encoder_outputs=encoded,
                max_new_tokens=max_new_tokens,
                num_beams=1,
                do_sample=False,
                # A clip fits the window; a stray timestamp token must not start a second pass over it.
                force_unique_generate_call=True,
            )
        return TranscribedBatch(
            number=number,
            indices=batch["clip_index"].tolist(),
            transcripts=[self._labels.decode(row) for row in tokens.tolist()],
            loss=float(loss),
            n_labels=int((batch["labels"] != IGNORED_LABEL).sum()),
        )

    def _new_metric(self) -> ErrorRateMetric:
        return error_rate_metric(
            language_code=self._text_language,
            scratch=self.scratch,
            english_spelling=self._labels.tokenizer.english_spelling_normalizer,
        )


def _scores(metric: ErrorRateMetric | None, of_others: list[list[TranscribedBatch]], clips: ClipDataset) -> Scores:
    """Of the batches that the first rank has added to the metric, and of those of the others."""
    assert metric is not None  # noqa: S101 - the first rank has one
    for share in of_others:
        _add(share, clips, metric)
    return metric.compute()


def _add(done: list[TranscribedBatch], clips: ClipDataset, metric: ErrorRateMetric | None) -> None:
    if metric is not None:
        for batch in done:
            references = [clips.texts[index] for index in batch.indices]
            metric.add_batch(predictions=batch.transcripts, references=references)
