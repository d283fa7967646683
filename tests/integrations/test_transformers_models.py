"""LIP on models of transformers as they come: what their heads see, and losses of the models' own."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.hugging_face import LIPCallback, transformers
from torch import Tensor, nn

import lip_fast

pytestmark = [pytest.mark.contract, pytest.mark.filterwarnings("ignore:.*pin_memory")]

ROWS, LENGTH, CLASSES, WORDS = 8, 6, 12, 40
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": WORDS,
    "max_position_embeddings": 32,
    "num_labels": CLASSES,
}
OPTIONS: dict[str, Any] = {"rank": 4, "tail_rank": 4}


def _bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL))


def _distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        dim=16, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=WORDS, num_labels=CLASSES
    )
    return transformers.DistilBertForSequenceClassification(config)


def _roberta() -> nn.Module:
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SMALL))


def _tokens() -> nn.Module:
    return transformers.BertForTokenClassification(transformers.BertConfig(**SMALL))


def _gpt2(kind: str, **options: Any) -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=WORDS, num_labels=CLASSES, pad_token_id=0, **options
    )
    return getattr(transformers, kind)(config)


def _bart() -> nn.Module:
    """A decoder that is called causal, and does not shift the labels."""
    config = transformers.BartConfig(
        d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16, vocab_size=WORDS,
        max_position_embeddings=32, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    return transformers.BartForCausalLM(config)


def _t5() -> nn.Module:
    """An encoder and a decoder, whose head sees scaled states and whose labels are not shifted."""
    config = transformers.T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=WORDS, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "bert": (_bert, "classifier"),
    "distilbert": (_distilbert, "classifier"),
    "roberta": (_roberta, "classifier.out_proj"),
    "tokens": (_tokens, "classifier"),
    "causal": (lambda: _gpt2("GPT2LMHeadModel"), "lm_head"),
    "causal by name": (_bart, "lm_head"),
    "sequence to sequence": (_t5, "lm_head"),
}


class Words(torch.utils.data.Dataset):
    """Sentences; labels of the sentences, of each word, or the words themselves."""

    def __init__(self, kind: str, rows: int = 2 * ROWS) -> None:
        g = torch.Generator().manual_seed(0)
        self.words = torch.randint(1, WORDS, (rows, LENGTH), generator=g)
        shape = (rows, LENGTH) if kind == "tokens" else (rows,)
        self.labels = (
            self.words
            if "caus" in kind or kind == "sequence to sequence"
            else torch.randint(0, CLASSES, shape, generator=g)
        )

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[i], "labels": self.labels[i]}


def _trainer(kind: str, folder: Path, *, callbacks: list, **options: Any) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=options.pop("rows", ROWS),
        gradient_accumulation_steps=options.pop("accumulate", 1),
        num_train_epochs=1,
        save_strategy="no",
        lr_scheduler_type="constant",
        dataloader_pin_memory=False,
        learning_rate=0.01,
        max_grad_norm=0.0,
        seed=3,
        **options.pop("arguments", {}),
    )
    return transformers.Trainer(
        args=arguments, train_dataset=Words(kind), callbacks=callbacks, **({"model": None} | options)
    )


@pytest.mark.parametrize("kind", MODELS)
def test_the_features_are_what_the_head_sees(kind: str, tmp_path: Path) -> None:
    """The logits that follow from what was observed are those of the model, and so is its loss."""
    make, name = MODELS[kind]
    torch.manual_seed(0)
    model = make()
    callback = LIPCallback(name, **OPTIONS, start=100)
    run = _trainer(kind, tmp_path, callbacks=[callback], model=model)
    outputs: list[tuple[Tensor, Tensor]] = []
    model.register_forward_hook(
        lambda *args: outputs.append((args[-1].loss.detach(), args[-1].logits.detach()))
    )
    observed: list[tuple[Tensor, Tensor]] = []
    head = model.get_submodule(name)
    before: list[tuple[Tensor, Tensor | None]] = []

    class Note(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            (pending,) = callback.lip.state_dict()["pending"]
            observed.append((pending["features"], pending["targets"]))
            before.append(copy.deepcopy((head.weight.detach(), head.bias)))

    run.add_callback(Note())
    run.train()
    assert len(observed) == len(outputs) == 2
    assert callback.lip.stats()["steps"] == 2
    for (features, targets), (loss, logits), (weight, bias) in zip(observed, outputs, before, strict=True):
        ours = nn.functional.linear(features, weight, bias)
        assert torch.allclose(ours, logits.reshape(ours.shape), rtol=1e-5, atol=1e-6)
        # The Trainer divides by the labels that the model was given, shifted or not.
        of_all = (
            nn.functional.cross_entropy(ours, targets, reduction="sum")
            / run.train_dataset.labels[:ROWS].numel()
        )
        assert torch.allclose(of_all, loss, rtol=1e-5)


def test_pooled_logits_are_no_batch_of_the_head(tmp_path: Path) -> None:
    """A language model with a classifier computes logits at every word, and takes those of one."""
    run = _trainer(
        "sequence",
        tmp_path,
        callbacks=[LIPCallback("score", **OPTIONS)],
        model=_gpt2("GPT2ForSequenceClassification"),
    )
    with pytest.raises(ValueError, match=r"class indices of shape \(8, 6\), got \(8,\)"):
        run.train()


def test_a_head_of_several_layers_is_refused_and_the_linear_one_named(tmp_path: Path) -> None:
    run = _trainer("roberta", tmp_path, callbacks=[LIPCallback("classifier", **OPTIONS)], model=_roberta())
    with pytest.raises(TypeError, match=r"RobertaClassificationHead.*pass the nn.Linear.*'out_proj'"):
        run.train()


def test_the_loss_of_the_example_is_that_of_the_whole_step(tmp_path: Path) -> None:
    """Gradients do not depend on the micro-batches that a step is divided into."""

    def after(accumulate: int) -> list[Tensor]:
        torch.manual_seed(0)
        model = _bert().eval()
        callback = LIPCallback("classifier", **OPTIONS, start=100)

        def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
            callback.observe(labels)
            count = labels.numel() if num_items_in_batch is None else num_items_in_batch
            return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / count

        gradients: list[Tensor] = []

        class Note(transformers.TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                gradients.append(model.classifier.weight.grad.clone())

        for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
            dropout.p = 0.0
        run = _trainer(
            "bert",
            tmp_path,
            callbacks=[callback, Note()],
            model=model,
            rows=ROWS // accumulate,
            accumulate=accumulate,
            compute_loss_func=loss,
        )
        run.train()
        assert callback.lip.stats()["steps"] == 2
        return gradients

    for whole, parts in zip(after(1), after(4), strict=True):
        assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("trains", [True, False], ids=["from_config", "from_pretrained"])
def test_the_model_that_model_init_makes_is_observed(trains: bool, tmp_path: Path) -> None:
    """The Trainer makes it anew for each training, and evaluates it: evaluation is not observed."""
    made: list[nn.Module] = []

    def init() -> nn.Module:
        torch.manual_seed(0)
        made.append(_bert().train(trains))
        return made[-1]

    callback = LIPCallback("classifier", **OPTIONS)
    run = _trainer(
        "bert",
        tmp_path,
        callbacks=[callback],
        model_init=init,
        eval_dataset=Words("bert", 3),
        arguments={"eval_strategy": "steps", "eval_steps": 1},
    )
    run.evaluate()
    run.train()
    assert len(made) >= 2
    assert callback.lip.stats()["applied"] == 2
    assert callback.lip.state_dict()["pending"] == ()


def test_labels_that_never_come_are_said_at_once(tmp_path: Path) -> None:
    run = _trainer(
        "bert",
        tmp_path,
        callbacks=[LIPCallback("classifier", **OPTIONS)],
        model=_bert(),
        arguments={"label_smoothing_factor": 0.1},
    )
    with pytest.raises(RuntimeError, match="expected labels in the first step, got none"):
        run.train()


def test_an_optimizer_with_lip_whose_state_the_checkpoint_lacks_warns(tmp_path: Path) -> None:
    def run(folder: str, **arguments: Any) -> transformers.Trainer:
        torch.manual_seed(0)
        model = _bert()
        rest = [p for p in model.parameters() if p is not model.classifier.weight]
        optimizer = lip_fast.optim.LIPAdamW(
            [{"params": rest}, {"params": [model.classifier.weight], "lip_rank": 4}], lr=0.01
        )
        optimizer.watch(model.classifier)

        class Observing(transformers.Trainer):
            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(model, inputs, *args, **kwargs)
                optimizer.observe(model.classifier, inputs["labels"])
                return loss

        return Observing(
            model,
            transformers.TrainingArguments(
                output_dir=str(tmp_path / folder),
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                per_device_train_batch_size=ROWS,
                dataloader_pin_memory=False,
                num_train_epochs=2,
                **arguments,
            ),
            train_dataset=Words("bert"),
            optimizers=(optimizer, None),
        )

    run("a", save_strategy="steps", save_steps=2).train()
    with pytest.warns(UserWarning, match=r"state of LIPAdamW was loaded, that of its LIP .* was not"):
        run("b", save_strategy="no").train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_a_loss_of_other_labels_is_refused(tmp_path: Path) -> None:
    """What labels the head is to be fitted to cannot be told."""

    class Other(transformers.BertForTokenClassification):
        def forward(self, input_ids: Any = None, labels: Any = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids, labels=labels, **kwargs)
            output["loss"] = 7 * output.loss
            return output

    torch.manual_seed(0)
    run = _trainer(
        "tokens",
        tmp_path,
        callbacks=[LIPCallback("classifier", **OPTIONS)],
        model=Other(transformers.BertConfig(**SMALL)),
    )
    with pytest.raises(ValueError, match="shifted by one or not, got another: pass the labels"):
        run.train()
