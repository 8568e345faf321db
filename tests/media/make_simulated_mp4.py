"""
The recipe of the clip and the still that the simulator serves.

Run by hand, with `ffmpeg` on the path, and only when the clip has to look
different: `python tests/media/make_simulated_mp4.py`. It is no part of the
package, so the wheel carries the pictures and not their recipe.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).resolve().parents[2] / "fuhu_runway" / "testing" / "_server"

# 16:9 at the smallest size that still shows the word clearly in a notebook.
SIZE: Final = "480x270"
SECONDS: Final = 2

BACKGROUND: Final = (
    f"gradients=size={SIZE}:rate=24:duration={SECONDS}:speed=0.03:nb_colors=3"
    ":c0=0x1b2a49:c1=0x6a4c93:c2=0xd1495b:x0=0:y0=0:x1=480:y1=270:seed=7"
)
# The word stands still, so that every frame says it; the ball shows that time passes.
WORD: Final = (
    "drawtext=text=SIMULATED:fontcolor=white:fontsize=56:borderw=2:bordercolor=black@0.6"
    ":x=(w-text_w)/2:y=(h-text_h)/2-14"
)
BALL: Final = (
    "drawtext=text=●:fontcolor=white:fontsize=32"
    f":x=(w-text_w)*t/{SECONDS}:y=h-64-40*abs(sin(PI*t*2))"
)


def run(*arguments: str) -> None:
    """Run ffmpeg quietly, and raise if it fails."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise SystemExit("ffmpeg is not on the path")
    subprocess.run([program, "-y", "-loglevel", "error", *arguments], check=True)


def make_clip(path: Path) -> None:
    """Write the clip: H.264, yuv420p and the index first, which every browser accepts."""
    picture = ("-f", "lavfi", "-i", BACKGROUND, "-vf", f"{WORD},{BALL}")
    video = ("-c:v", "libx264", "-profile:v", "main", "-pix_fmt", "yuv420p", "-crf", "30")
    # Without the encoder's name and the date, the same ffmpeg makes the same bytes again.
    container = ("-movflags", "+faststart", "-fflags", "+bitexact", "-map_metadata", "-1")
    run(*picture, *video, *container, str(path))


def make_still(clip: Path, path: Path) -> None:
    """Write one frame of *clip* as a small PNG: the poster and the last frame of every task."""
    run("-i", str(clip), "-frames:v", "1", "-vf", "scale=240:-1", "-pix_fmt", "pal8", str(path))


if __name__ == "__main__":
    make_clip(PACKAGE / "simulated.mp4")
    make_still(PACKAGE / "simulated.mp4", PACKAGE / "simulated.png")
