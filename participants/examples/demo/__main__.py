"""python -m examples.demo [number]: play the stories, or one of them; exit status 0 if all ended as they must."""

import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from examples.demo.stories import STORIES
from examples.demo.story import INDENT, Story, StoryFailed, bold, heading
from examples.demo.world import World
from examples.processes import ProcessFailed, run_until_stopped

INTRODUCTION: Final = """\
Holdfast: try, then confirm or cancel
   One coordinator; the services inventory, payment and shipping, which take part; the service
   order, which initiates; a card gateway outside of it all; and a store with its depot, which sells
   by sagas: real processes on 127.0.0.1, each with a database of its own. Times are seconds since
   the story began.
"""


async def main(number: str = "") -> int:
    """Set the world up in a folder of its own, play, and tidy up; the exit status."""
    wanted = [each for each in STORIES if each[0].startswith(f"{number}.")] if number else STORIES
    if not wanted:
        print(f"There is no story {number}: give a number from 1 to {len(STORIES)}.", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="holdfast-demo-"))
    began_at = time.monotonic()
    print(bold(INTRODUCTION.splitlines()[0]), *INTRODUCTION.splitlines()[1:], "", sep="\n", flush=True)
    stories: list[Story] = []
    try:
        async with World.started(folder) as world:
            for title, lesson, play in wanted:
                stories.append(await told(Story(title, lesson), world, play))
    except ProcessFailed as error:
        print(f"FAILED    {error}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    status = verdict(stories, expected=len(wanted), took_s=time.monotonic() - began_at)
    if status == 0:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"The logs of all processes are in {folder / 'logs'}")
    return status


async def told(story: Story, world: World, play: Callable[[World, Story], Awaitable[None]]) -> Story:
    """Play a story and print it; what goes wrong on the way is an expectation that was not met."""
    print(heading(story.title, story.lesson), flush=True)
    try:
        await play(world, story)
    except (StoryFailed, ProcessFailed, httpx.HTTPError) as error:
        story.expect("the story goes on", "it does", f"{type(error).__name__}: {error}")
    print("\n".join(story.lines()), end="\n\n", flush=True)
    return story


def verdict(stories: Sequence[Story], *, expected: int, took_s: float) -> int:
    """Say how it went; 0 only if every story was played and ended as it must."""
    good = sum(story.ended_as_it_must for story in stories)
    print(bold(f"{good} of {expected} stories ended as they must, in {took_s:.0f} s"))
    for story in stories:
        if not story.ended_as_it_must:
            print(f"{INDENT}not: {story.title}")
    return 0 if good == expected == len(stories) else 1


if __name__ == "__main__":
    sys.exit(run_until_stopped(partial(main, *sys.argv[1:2])))
