"""Sound for people: WAV files, and pictures of it for pages."""

import wave
from pathlib import Path

import torch
from torch import Tensor

HEIGHT, WIDTH = 96, 192  # pixels of a picture of sound
RANGE = 80.0  # decibels that it shows, below the level of a sine at full scale
WINDOW = 512  # samples of a window


def save_sound(audio: Tensor, rate: int, path: Path) -> None:
    """Writes sound [C, T] with full scale at -1 and 1 as a WAV file of 16 bits, making its folder. Beyond is cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = (audio.detach().float().nan_to_num().clamp(-1, 1).cpu() * 32767).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(whole))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.T.contiguous().numpy().tobytes())


def pictured(audio: Tensor) -> Tensor:
    """Spectrograms of sound [B, C, T] as grey pictures [B, 3, HEIGHT, WIDTH] in [0, 1]: time to the right, high
    frequencies above, black RANGE decibels below full scale, of the mean over channels."""
    mono = audio.detach().float().nan_to_num().clamp(-1, 1).mean(1).cpu()
    size = min(WINDOW, 2 ** (max(mono.shape[1], 2).bit_length() - 1))
    hop = max(1, min(size // 4, mono.shape[1] // WIDTH))
    window = torch.hann_window(size)
    found = torch.stft(mono, size, hop, window=window, pad_mode="constant", return_complex=True).abs()
    decibels = 20 * (found / (window.sum() / 2)).clamp(min=1e-8).log10()
    grey = (decibels / RANGE + 1).clamp(0, 1).flip(1)[:, None]
    return torch.nn.functional.interpolate(grey, (HEIGHT, WIDTH), mode="area").expand(-1, 3, -1, -1)
