import pytest
import torch

from verbdistill import MatchingError, VerbalizersError
from verbdistill.seeing.speaking import LayerSpeech, Speeches, WordProbability
from verbdistill.verbalizers.bodies import KINDS
from verbdistill.verbalizers.wire import VerbalizersSpec, verbalizers_from_proto, verbalizers_to_proto
from verbdistill.wire import (
    DistillationSpec,
    distillation_from_proto,
    distillation_to_proto,
    kld_from_proto,
    match_request_to_proto,
    matches_from_proto,
    matches_to_proto,
    scale_from_proto,
    speeches_from_proto,
    speeches_to_proto,
)
from vlmpress.verbdistill.v1 import verbdistill_pb2 as pb


def spec(**changes):
    values = {"layers": (2, 6), "hidden_size": 64, "kind": "verb_ffn", "depth": 1, "out_size": 64, "is_bare": False}
    return VerbalizersSpec(**(values | changes))


def test_round_trips():
    for kind in KINDS:
        verbalizers = spec(kind=kind, depth=2, out_size=96, is_bare=True)
        assert verbalizers_from_proto(verbalizers_to_proto(verbalizers)) == verbalizers
    assert verbalizers_from_proto(pb.Verbalizers(layers=(2, 6), hidden_size=64)) == spec()
    distillation = DistillationSpec(
        student_layers=(1, 2),
        teacher_layers=(1, 2, 3),
        num_verbalization_steps=1,
        num_interaction_steps=2,
        num_sft_steps=3,
        temperature_scale=2.0,
    )
    assert distillation_from_proto(distillation_to_proto(distillation)) == distillation
    assert matches_from_proto(matches_to_proto([0, 3])) == [0, 3]
    kld = torch.rand(2, 3, dtype=torch.float64)
    request = match_request_to_proto(kld, scale=3.0, seed=5)
    assert torch.equal(kld_from_proto(request), kld)
    assert (scale_from_proto(request), request.seed) == (3.0, 5)
    request.scale = 0
    assert scale_from_proto(request) == 2.0


def test_bad_messages_are_refused():
    request = match_request_to_proto(torch.rand(2, 3))
    del request.kld[0]
    with pytest.raises(MatchingError, match="expected 6 values, got 5"):
        kld_from_proto(request)
    request.num_teacher_targets = 1
    with pytest.raises(MatchingError, match="1 <= student <= teacher, got 2 and 1"):
        kld_from_proto(request)
    with pytest.raises(MatchingError):
        kld_from_proto(type(request)())
    for layers, size in (((), 4), ((2, 1), 4), ((0,), 4), ((1,), 0)):
        with pytest.raises(VerbalizersError):
            verbalizers_from_proto(verbalizers_to_proto(spec(layers=layers, hidden_size=size)))
    for changes in ({"kind": 9}, {"depth": 3}):
        with pytest.raises(VerbalizersError, match="known kind and a depth of 1 or 2"):
            verbalizers_from_proto(pb.Verbalizers(layers=(1,), hidden_size=4, **changes))


def test_speeches_survive_the_wire() -> None:
    words = (WordProbability("red", 0.75), WordProbability("", 0.125))
    speeches = Speeches(
        (LayerSpeech(2, "red", words), LayerSpeech(6, "", ())), LayerSpeech(None, "dark red", words[:1])
    )
    assert speeches_from_proto(speeches_to_proto(speeches)) == speeches
