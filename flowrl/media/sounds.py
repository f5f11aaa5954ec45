"""Sound for people: WAV files, and spectrograms as pictures for pages."""

import wave
from pathlib import Path

import torch
from torch import Tensor

HEIGHT, WIDTH = 96, 192  # pixels of a picture of sound
RANGE = 80.0  # decibels shown, below the level of a full-scale sine
WINDOW = 512  # samples per window


def save_sound(audio: Tensor, rate: int, path: Path) -> None:
    """Writes sound float [C, T] with full scale at -1 and 1 as a 16-bit WAV file, and creates its folder.

    rate: samples per second. Values beyond full scale are clipped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = (audio.detach().float().nan_to_num().clamp(-1, 1).cpu() * 32767).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(whole))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.T.contiguous().numpy().tobytes())


def spectrogram_pictures(audio: Tensor) -> Tensor:
    """Spectrograms of sound float [B, C, T] as grey pictures float32 [B, 3, HEIGHT, WIDTH] in [0, 1]: time runs right,
    high frequencies at the top, black at RANGE decibels below full scale, of the mean over channels."""
    mono = audio.detach().float().nan_to_num().clamp(-1, 1).mean(1).cpu()
    size = min(WINDOW, 2 ** (max(mono.shape[1], 2).bit_length() - 1))
    hop = max(1, min(size // 4, mono.shape[1] // WIDTH))
    window = torch.hann_window(size)
    spectrum = torch.stft(mono, size, hop, window=window, pad_mode="constant", return_complex=True).abs()
    decibels = 20 * (spectrum / (window.sum() / 2)).clamp(min=1e-8).log10()
    grey = (decibels / RANGE + 1).clamp(0, 1).flip(1)[:, None]
    return torch.nn.functional.interpolate(grey, (HEIGHT, WIDTH), mode="area").expand(-1, 3, -1, -1)
