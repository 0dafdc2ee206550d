import pytest
import torch
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from verbdistill import UnsupportedModelError, head_of
from verbdistill.models.parts import base_model, decoder_layers, final_norm, hidden_size, vocab_size

TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}


def test_parts_of_llava(llava):
    model = llava(3)
    assert base_model(model) is model.model
    assert decoder_layers(model) is model.model.language_model.layers
    assert final_norm(model) is model.model.language_model.norm
    assert head_of(model).weight is model.lm_head.weight
    assert head_of(model).bias is None
    assert (hidden_size(model), vocab_size(model)) == (32, 12)


def test_logits_that_a_model_changes_behind_its_head_are_refused():
    gemma = Gemma2Config(**TINY, num_key_value_heads=2, head_dim=8, final_logit_softcapping=30.0)
    with pytest.raises(UnsupportedModelError, match="logits as lm_head gives them, got final_logit_softcapping 30"):
        head_of(Gemma2ForCausalLM(gemma))
    gemma.final_logit_softcapping = None
    assert head_of(Gemma2ForCausalLM(gemma)).num_words == 8
    cohere = CohereConfig(**TINY, num_key_value_heads=2, logit_scale=0.0625)
    with pytest.raises(UnsupportedModelError, match=r"got logit_scale 0\.0625"):
        head_of(CohereForCausalLM(cohere))
    cohere.logit_scale = 1.0
    assert head_of(CohereForCausalLM(cohere)).num_words == 8


def test_models_of_other_parts_are_refused(llava):
    with pytest.raises(UnsupportedModelError, match=r"Linear: expected decoder layers in one of model\.l"):
        decoder_layers(nn.Linear(2, 2))
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel: expected decoder layers"):
        head_of(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=8)))
    model = llava(2)
    model.lm_head = nn.Sequential(nn.Linear(32, 12))
    with pytest.raises(UnsupportedModelError, match="lm_head to be a matrix of floating-point numbers, got Sequential"):
        head_of(model)
    model.lm_head = nn.Linear(16, 12)
    with pytest.raises(UnsupportedModelError, match="expected lm_head to read 32 features, got 16"):
        head_of(model)
    model.lm_head = nn.Linear(32, 12)
    model.lm_head.base_layer = nn.Linear(32, 12)
    with pytest.raises(UnsupportedModelError, match="expected lm_head without an adapter, got Linear: merge it first"):
        head_of(model)
    del model.model.language_model.norm
    with pytest.raises(UnsupportedModelError, match="expected a final norm"):
        final_norm(model)
    model.model.language_model.layers = nn.ModuleList()
    with pytest.raises(UnsupportedModelError, match="at least one decoder layer, got none"):
        decoder_layers(model)
    del model.lm_head
    with pytest.raises(UnsupportedModelError, match="with a head and lm_head, got none"):
        head_of(model)


def test_heads_with_a_bias_are_read_whole(llava):
    model = llava(2)
    model.lm_head = nn.Linear(32, 12)
    features = torch.randn(3, 32)
    torch.testing.assert_close(head_of(model).logits(features), model.lm_head(features))
