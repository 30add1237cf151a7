"""Hugging Face's Trainer, with real trainings of tiny transformers on the CPU."""

import json

import pytest
import torch
from support.tolerances import assert_same_moments, rounding
from support.trainers import Seen, assert_unequal_moments, gradients, moments_of_updates
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from rlgns.integrations.token_losses import IGNORED
from rlgns.integrations.transformers import NoiseScaleCallback
from rlgns.noise.history import TRAINED

ACCUMULATED, MICRO_BATCH, LENGTH, VOCABULARY = 4, 2, 12, 11


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double()


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config).double()


def texts(num_rows=16):
    """Rows of 2 to 12 tokens; the rest is padding that is not predicted."""
    draws = torch.Generator().manual_seed(1)
    rows = []
    for number in range(num_rows):
        length = 2 + (7 * number) % (LENGTH - 1)
        tokens = torch.randint(VOCABULARY, (LENGTH,), generator=draws)
        labels = tokens.clone()
        labels[length:] = IGNORED
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def sentences(num_rows=16):
    draws = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (num_rows, LENGTH), generator=draws)
    return [{"input_ids": row, "labels": row[0] % 2} for row in tokens]


class SeeingTrainer(Trainer):
    """A trainer that notes what it trains on."""

    seen: Seen

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen.add(self.model, {name: value.clone() for name, value in inputs.items()})
        return super().training_step(model, inputs, num_items_in_batch)


def trainer_of(model, rows, folder, **options):
    options = {"gradient_accumulation_steps": ACCUMULATED, "num_train_epochs": 2, "logging_steps": 1} | options
    loss = options.pop("compute_loss_func", None)
    arguments = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=MICRO_BATCH, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = SeeingTrainer(model=model, args=arguments, train_dataset=rows, compute_loss_func=loss)
    trainer.seen = Seen()
    return trainer


def trained(model, rows, folder, *, measure_every=1, count=None, **options):
    trainer = trainer_of(model, rows, folder, **options)
    callback = NoiseScaleCallback(trainer, measure_every, count=count)
    trainer.add_callback(callback)
    trainer.train()
    return trainer, callback


def mean_loss(call, batch):
    """The mean over the tokens that are predicted, or over sentences, without the library's own reduction."""
    labels = batch["labels"]
    logits = call(input_ids=batch["input_ids"]).logits
    if labels.ndim == 1:
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), labels[:, 1:].reshape(-1))


def tokens_of(batch):
    return int((batch["labels"][:, 1:] != IGNORED).sum())


@pytest.mark.parametrize("clipped", [0.0, 0.01])
def test_a_mean_over_tokens_weights_micro_batches_by_their_tokens(tmp_path, clipped):
    trainer, callback = trained(gpt2(), texts(), tmp_path, max_grad_norm=clipped)
    rows, sizes = gradients(trainer.model, trainer.seen, mean_loss), [tokens_of(b) for b in trainer.seen.batches]
    found = callback.history.moments(TRAINED)
    assert len(found) == 4
    assert len(set(sizes)) > 3
    for update, moments in enumerate(found):
        part = slice(update * ACCUMULATED, (update + 1) * ACCUMULATED)
        # the library's loss is a float32 sum over float32 logits, whatever the model is
        assert_unequal_moments(moments, rows[part], sizes[part], sizes[part], rounding(torch.float32))
        assert moments.large_batch_size == pytest.approx(sum(sizes[part]))
    assert callback.meter.unit == "tokens"


def test_the_last_accumulation_is_shorter(tmp_path):
    """14 rows: 7 micro-batches, 5 and 2 in each epoch. The 2 are too few."""
    trainer, callback = trained(gpt2(), texts(14), tmp_path, gradient_accumulation_steps=5)
    rows, sizes = gradients(trainer.model, trainer.seen, mean_loss), [tokens_of(b) for b in trainer.seen.batches]
    assert (len(callback.history.moments(TRAINED)), callback.meter.skipped) == (2, 2)
    second = callback.history.moments(TRAINED)[1]
    assert_unequal_moments(second, rows[7:12], sizes[7:12], sizes[7:12], rounding(torch.float32))


def test_a_mean_of_means_counts_micro_batches_alike(tmp_path):
    trainer, callback = trained(bert(), sentences(), tmp_path)
    expected = moments_of_updates(gradients(trainer.model, trainer.seen, mean_loss), ACCUMULATED, MICRO_BATCH)
    for one, other in zip(callback.history.moments(TRAINED), expected, strict=True):
        assert_same_moments(one, other, torch.float64)
    assert callback.meter.unit == "examples"


def aligned_loss(outputs, labels, num_items_in_batch=None):
    """Every token predicts itself, so that all labels count, as the trainer counts them for this model."""
    logits = outputs.logits.reshape(-1, VOCABULARY)
    loss = nn.functional.cross_entropy(logits, labels.reshape(-1), reduction="sum")
    return loss / num_items_in_batch


def test_a_loss_function_of_one_s_own_is_measured_alike(tmp_path):
    trainer, callback = trained(gpt2(), texts(), tmp_path, compute_loss_func=aligned_loss)

    def mean(call, batch):
        return aligned_loss(call(input_ids=batch["input_ids"]), batch["labels"], (batch["labels"] != IGNORED).sum())

    rows = gradients(trainer.model, trainer.seen, mean)
    sizes = [int((batch["labels"] != IGNORED).sum()) for batch in trainer.seen.batches]
    first = callback.history.moments(TRAINED)[0]
    assert_unequal_moments(first, rows[:4], sizes[:4], sizes[:4], rounding(torch.float64))


def test_rows_can_be_counted_instead_of_tokens(tmp_path):
    trainer, callback = trained(gpt2(), texts(), tmp_path, count=lambda inputs: len(inputs["labels"]))
    rows, sizes = gradients(trainer.model, trainer.seen, mean_loss), [tokens_of(b) for b in trainer.seen.batches]
    first = callback.history.moments(TRAINED)[0]
    assert_unequal_moments(first, rows[:4], [MICRO_BATCH] * 4, sizes[:4], rounding(torch.float32))


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"optim": "adafactor", "max_grad_norm": 0.01}])
def test_training_is_bitwise_the_same(tmp_path, options):
    with_it, callback = trained(gpt2().float(), texts(), tmp_path / "with", measure_every=2, **options)
    without = trainer_of(gpt2().float(), texts(), tmp_path / "without", **options)
    without.train()
    assert len(callback.history.measurements) == 2
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert "training_step" not in vars(with_it)


class Reporter(TrainerCallback):
    """What W&B's callback sees."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def test_reporters_and_the_log_history_receive_the_noise_scale(tmp_path):
    trainer = trainer_of(gpt2(), texts(), tmp_path)
    reporter, callback = Reporter(), NoiseScaleCallback(trainer, measure_every=2)
    for each in (reporter, callback):
        trainer.add_callback(each)
    trainer.train()
    for logs in (reporter.logs, trainer.state.log_history):
        numbers = [log["noise/trained/trace_covariance"] for log in logs if "noise/trained/trace_covariance" in log]
        assert numbers == [m.trace_covariance for m in callback.history.moments(TRAINED)]
    trainer.save_state()
    assert "noise/trained/sq_norm" in json.dumps(json.loads((tmp_path / "trainer_state.json").read_text()))


def test_one_micro_batch_is_refused_in_the_library_s_arguments(tmp_path):
    trainer = trainer_of(gpt2(), texts(), tmp_path, gradient_accumulation_steps=1)
    trainer.add_callback(NoiseScaleCallback(trainer))
    with pytest.raises(ValueError, match=r"use TrainingArguments\(gradient_accumulation_steps=4\)") as error:
        trainer.train()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("attribute", "name"), [("is_fsdp_enabled", "FSDP"), ("is_deepspeed_enabled", "DeepSpeed")])
def test_sharded_gradients_are_refused(tmp_path, attribute, name):
    trainer = trainer_of(gpt2(), texts(), tmp_path)
    setattr(trainer, attribute, True)  # what the trainer decides at its start
    with pytest.raises(ValueError, match=f"{name} shards gradients; train with DDP"):
        NoiseScaleCallback(trainer).on_train_begin(trainer.args, trainer.state, trainer.control)


def test_a_training_that_failed_leaves_nothing_behind_in_the_next(tmp_path):
    trainer = trainer_of(gpt2(), texts(), tmp_path, num_train_epochs=1)
    callback = NoiseScaleCallback(trainer, measure_every=1)
    trainer.add_callback(callback)
    collate, calls = trainer.data_collator, []

    def failing(features):
        calls.append(features)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return collate(features)

    trainer.data_collator = failing
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.data_collator = collate
    trainer.train()
    assert "training_step" not in vars(trainer)
    assert callback.history.moments(TRAINED)[-1].num_groups == ACCUMULATED
