"""A real sequence classifier, random-init: batches change nothing, labels must say which is entailment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from semcal import UserError
from semcal.models.text_models import EntailmentModel

WORDS = "[PAD] [UNK] [CLS] [SEP] what is it ? cat dog an animal the small one".split()


def checkpoint(folder, labels):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=24,
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_probabilities_do_not_depend_on_the_batch(tmp_path):
    model = EntailmentModel.load(checkpoint(tmp_path, ["contradiction", "neutral", "ENTAILMENT"]), device="cpu")
    rng = np.random.default_rng(0)
    pairs = [tuple(" ".join(rng.choice(WORDS[4:], n)) for n in rng.integers(1, 30, 2)) for _ in range(150)]
    seen = []
    together = model.probability(pairs, lambda done, of: seen.append((done, of)))
    alone = np.array([model.probability([pair])[0] for pair in pairs])
    assert np.abs(together - alone).max() < 1e-5
    assert np.ptp(together) > 0.1
    assert seen == [(64, 150), (128, 150), (150, 150)]
    assert model.pairs_asked == 300
    assert model.entails == 2


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["neutral", "contradiction"], ["entailment", "entails"]])
def test_labels_that_do_not_say_which_is_entailment_are_refused(tmp_path, labels):
    with pytest.raises(UserError, match="id2label") as refused:
        EntailmentModel.load(checkpoint(tmp_path, labels), device="cpu")
    assert labels[0] in str(refused.value)


def test_two_labels_are_enough(tmp_path):
    model = EntailmentModel.load(checkpoint(tmp_path, ["not_entailment", "entailment"]), device="cpu")
    assert model.entails == 1


def test_what_is_no_classifier_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not a model folder"):
        EntailmentModel.load(str(tmp_path))
