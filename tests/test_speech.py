"""Spoken digits, a voice, and a dialogue."""

import io
import wave

import pytest
import torch

import secure_ml as sm
from secure_ml.batch import Batch
from secure_ml.tasks._speech import LogMel, chirps, distort, resample, wav
from secure_ml.tasks._voice import WaveNet, decode, encode, speak
from secure_ml.tasks.dialogue import AskedAgain, Speaker, Success, outcome_loss
from secure_ml.tasks.wavenet import _ask
from tests.laws import tiny_task


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def said(n: int, length: int) -> dict[str, torch.Tensor]:
    return {
        "digit": torch.arange(n) % 4,
        "speaker": torch.arange(n) % 2,
        "length": torch.full((n,), length),
    }


def test_resampling_shifts_and_stretches() -> None:
    ramp = torch.arange(1.0, 9)[None]
    assert torch.equal(resample(ramp, torch.zeros(1, 1), torch.ones(1, 1)), ramp)
    moved = resample(ramp, torch.full((1, 1), 1.5), torch.full((1, 1), 2.0))
    assert moved.tolist() == [[2.5, 4.5, 6.5, 4.0, 0.0, 0.0, 0.0, 0.0]]


def test_distortion_keeps_each_clip_to_itself_and_in_the_box() -> None:
    clips = chirps(8, 256, random()).wave
    clips[3] = 0
    changed = distort(clips, random(1))
    assert changed.isfinite().all()
    assert changed.abs().max() <= 1
    assert changed[3].eq(0).all()


def test_hearing_does_not_depend_on_loudness_and_survives_silence() -> None:
    clips, ear = chirps(4, 256, random()).wave, LogMel(8, 32)
    assert torch.allclose(ear(clips), ear(clips / 50), atol=1e-3)
    silence = torch.zeros(2, 256, requires_grad=True)
    heard = ear(silence)
    heard.square().sum().backward()
    assert heard.isfinite().all()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()


def test_wav_files_are_read_back() -> None:
    samples = torch.tensor([0.0, 0.5, -1.0, 2.0])
    with wave.open(io.BytesIO(wav(samples))) as file:
        assert file.getparams()[:4] == (1, 2, 8000, 4)
        assert torch.frombuffer(bytearray(file.readframes(4)), dtype=torch.int16).tolist() == [0, 16384, -32767, 32767]


def test_levels_round_trip_and_are_fine_where_it_is_quiet() -> None:
    levels = torch.arange(256)
    assert torch.equal(encode(decode(levels)), levels)
    assert decode(levels)[[0, -1]].tolist() == pytest.approx([-1, 1])
    steps = decode(levels).diff()
    assert steps[127] < steps[0] / 100


def test_the_voice_hears_no_future() -> None:
    torch.manual_seed(0)
    voice = WaveNet(4, 2, 8, (1, 3, 9), taps=4).eval()
    inputs = {"wave": torch.rand(1, 64) - 0.5, "position": torch.tensor([0]), **said(1, 64)}
    later = {**inputs, "wave": inputs["wave"].clone()}
    later["wave"][0, 40] += 0.3
    moved = (voice(inputs) - voice(later)).abs().amax(2)[0]
    assert moved[:40].max() < 1e-6
    assert moved[40] > 1e-4


def test_the_voice_speaks_what_it_predicts() -> None:
    torch.manual_seed(0)
    voice = WaveNet(4, 2, 8, (1, 3, 9), taps=4).eval()
    words = said(3, 80)
    greedy = speak(voice, words, random(), temperature=1e-6)
    inputs = {
        "wave": torch.cat([decode(encode(torch.zeros(3, 1))), greedy[:, :-1]], 1),
        "position": torch.zeros(3),
        **words,
    }
    assert torch.equal(voice(inputs).argmax(2), encode(greedy))
    one = {name: value[:1] for name, value in words.items()}
    with torch.no_grad():
        assert torch.equal(speak(voice, one, random(5)), _ask(voice, one, random(5)))


def test_wavenet_samples_a_file() -> None:
    task = tiny_task("wavenet")
    assert task.sample is not None
    made = task.sample(task.build(), "3 theo", random())
    assert made.text == "three, said by theo in 0.01 s"
    assert list(made.files) == ["3.wav"]
    with pytest.raises(sm.UsageError, match="wavenet says a digit"):
        task.sample(task.build(), "eleven", random())


def test_windows_cover_their_clips() -> None:
    train = tiny_task("wavenet").draw(0).train
    inputs = train.inputs
    assert isinstance(inputs, dict)
    assert isinstance(train.target, torch.Tensor)
    assert torch.equal(encode(inputs["wave"])[:, 1:], train.target[:, :-1])
    assert int(inputs["position"].min()) == 0
    assert bool((inputs["position"] + 65 <= inputs["length"].clamp(min=65)).all())


def test_ways_of_a_dialogue_are_probabilities() -> None:
    module, batch = tiny_task("dialogue").build().eval(), tiny_task("dialogue").draw(0).test
    ways = module({"words": module({"heard": batch.inputs})})
    assert ways.shape == (32, 8)
    assert torch.allclose(ways.exp().sum(1), torch.ones(32), atol=1e-5)
    halves, scores = (part.unflatten(1, (2, 4)) for part in (ways, module(batch.inputs)))
    assert torch.allclose(halves - halves.amax(2, keepdim=True), scores - scores.amax(2, keepdim=True), atol=1e-5)


def test_the_reward_of_a_dialogue() -> None:
    target = {"answer": torch.tensor([2, 2, 2]), "words": torch.zeros(3, 4, dtype=torch.long)}
    ways = torch.full((3, 8), -30.0)
    ways[0, 2] = ways[1, 4 + 2] = ways[2, 4 + 3] = 0
    sure = torch.full((3, 4, 4), -30.0)
    sure[:, :, 0] = 0
    batch = Batch(torch.zeros(3, 4, 16), target)
    losses = outcome_loss(0.1, lambda inputs: ways if "words" in inputs else sure, batch)
    assert losses.tolist() == pytest.approx([0, 0.1, 1.1], abs=1e-4)
    assert Success().per_example(ways, target).tolist() == [1, 1, 0]
    assert AskedAgain().per_example(ways, target).tolist() == [0, 1, 1]


def test_a_second_turn_adds_to_the_first() -> None:
    torch.manual_seed(0)
    module = Speaker(4, 4, bands=8, window=32)
    unsure = torch.zeros(1, 4, 4).log_softmax(-1)
    told = unsure.clone()
    told[:, 2:] = torch.tensor([5.0, 0, 0, 0]).log_softmax(-1)
    at_once, later = (
        module({"words": unsure}).unflatten(1, (2, 4)).unbind(1),
        module({"words": told}).unflatten(1, (2, 4)),
    )
    assert torch.allclose(at_once[0], later[:, 0])
    assert not torch.allclose(at_once[1], later[:, 1])


def test_options_are_checked() -> None:
    with pytest.raises(sm.UsageError, match="speakers 0 to 5"):
        sm.task("speech_digits", speaker=6)
    with pytest.raises(sm.UsageError, match="between 0 and 1"):
        sm.task("dialogue", cost=2.0)
    assert repr(sm.task("speech_digits", speaker=2)) == "speech_digits(speaker=2)"
    assert repr(sm.task("dialogue", voice="runs/voice")) == "dialogue(voice='runs/voice')"


@pytest.mark.data
def test_the_speaker_left_out_is_in_no_other_part() -> None:
    parts = sm.task("speech_digits", speaker=1).draw(0)
    assert [len(part) for part in parts.parts().values()] == [1800, 200, 500, 300, 200]
    official = sm.task("speech_digits").draw(0)
    assert [len(part) for part in official.parts().values()] == [2000, 200, 300, 300, 200]


def test_whether_to_ask_again_is_decided_before_the_second_turn() -> None:
    """Another second turn changes the answer, perhaps, but not whether it was asked for."""
    torch.manual_seed(0)
    module = sm.task("dialogue", tiny=True).build().eval()
    call = torch.randn(40, 4, 128).clamp(-1, 1)
    other = torch.cat([call[:, :2], torch.randn(40, 2, 128).clamp(-1, 1)], 1)
    with torch.no_grad():
        first, second = (module(wave).argmax(1) >= 4 for wave in (call, other))
    assert torch.equal(first, second)
