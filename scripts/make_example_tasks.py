"""Make the example tasks: original puzzles in ARC's format.

    python scripts/make_example_tasks.py examples/tasks

Each rule is a function from an input grid to its output grid. The inputs are random with the name
of the rule as the seed, so the files are always the same. Eight tasks have their own files, with
answers. Six tasks are in one combined file in Kaggle's layout, without answers.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

Grid = list[list[int]]
Draw = Callable[[Random], Grid]
Rule = Callable[[Grid], Grid]

TRAINING_PAIRS = 3


def blank(height: int, width: int) -> Grid:
    """Return a grid of background cells."""
    return [[0] * width for _ in range(height)]


def put(grid: Grid, top: int, left: int, height: int, width: int, color: int) -> None:
    """Draw a filled rectangle."""
    for row in grid[top : top + height]:
        row[left : left + width] = [color] * width


# Inputs.


def speckled(low: int, high: int, density: float = 0.5, square: bool = True) -> Draw:
    """Return a function that draws grids with sides of `low` to `high` cells.

    Each cell is colored with probability `density`.
    """

    def draw(random: Random) -> Grid:
        height = random.randint(low, high)
        width = height if square else random.randint(low, high)
        colors = random.sample(range(1, 10), 3)
        return [
            [random.choice(colors) if random.random() < density else 0 for _ in range(width)]
            for _ in range(height)
        ]

    return draw


def boxes(side: int, count: int, hollow: bool = False) -> Draw:
    """Return a function that draws square grids with rectangles that do not touch each other."""

    def draw(random: Random) -> Grid:
        grid = blank(side, side)
        band = side // count
        for index, color in enumerate(random.sample(range(1, 9), count)):
            height = random.randint(min(3, band - 2), band - 2)
            width = random.randint(3, side - 3)
            top, left = index * band + 1, random.randint(1, side - 1 - width)
            put(grid, top, left, height, width, color)
            if hollow:
                put(grid, top + 1, left + 1, height - 2, width - 2, 0)
        return grid

    return draw


def beginning_of_stripes(random: Random) -> Grid:
    """Draw a wide grid whose first columns show a pattern of stripes."""
    grid = blank(random.randint(3, 6), 18)
    for column, color in enumerate(random.sample(range(1, 10), random.randint(2, 4))):
        for row in grid:
            row[column] = color
    return grid


def two_points(random: Random) -> Grid:
    """Draw a grid with two cells of one color in the same row or column."""
    grid = blank(12, 12)
    line, color = random.randrange(12), random.randint(1, 9)
    for position in random.sample(range(12), 2):
        grid[line][position] = color
    return transpose(grid) if random.random() < 0.5 else grid


# Rules.


def mirror(grid: Grid) -> Grid:
    """Mirror the grid from left to right."""
    return [row[::-1] for row in grid]


def transpose(grid: Grid) -> Grid:
    """Exchange rows and columns."""
    return [list(column) for column in zip(*grid, strict=True)]


def turn(grid: Grid) -> Grid:
    """Rotate the grid by a quarter turn clockwise."""
    return transpose(grid[::-1])


def fall(grid: Grid) -> Grid:
    """Drop colored cells to the bottom of their column."""
    columns = [sorted(column, key=bool) for column in zip(*grid, strict=True)]
    return transpose(columns)


def tile(grid: Grid) -> Grid:
    """Repeat the grid four times, two by two."""
    return [row * 2 for row in grid * 2]


def double(grid: Grid) -> Grid:
    """Replace every cell by a square of four cells."""
    return [wide for row in grid for wide in [[cell for cell in row for _ in range(2)]] * 2]


def connect(grid: Grid) -> Grid:
    """Draw a line between two points."""
    points = [(y, x) for y, row in enumerate(grid) for x, cell in enumerate(row) if cell]
    (top, left), (bottom, right) = points
    result = [row[:] for row in grid]
    put(result, top, left, bottom - top + 1, right - left + 1, grid[top][left])
    return result


def fill_frames(grid: Grid) -> Grid:
    """Fill every background cell that is not connected to the edge with color 9."""
    height, width = len(grid), len(grid[0])
    reached = {
        (y, x)
        for y in range(height)
        for x in range(width)
        if grid[y][x] == 0 and (y in (0, height - 1) or x in (0, width - 1))
    }
    ways = list(reached)
    while ways:
        y, x = ways.pop()
        for step in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            inside = 0 <= step[0] < height and 0 <= step[1] < width
            if inside and step not in reached and grid[step[0]][step[1]] == 0:
                reached.add(step)
                ways.append(step)
    return [
        [9 if cell == 0 and (y, x) not in reached else cell for x, cell in enumerate(row)]
        for y, row in enumerate(grid)
    ]


def outline(grid: Grid) -> Grid:
    """Surround every object with color 9."""

    def beside(y: int, x: int) -> bool:
        return any(any(row[max(x - 1, 0) : x + 2]) for row in grid[max(y - 1, 0) : y + 2])

    return [
        [cell or (9 if beside(y, x) else 0) for x, cell in enumerate(row)]
        for y, row in enumerate(grid)
    ]


def keep_largest(grid: Grid) -> Grid:
    """Remove all colors except the color with the most cells; the first color wins a tie."""
    cells = [cell for row in grid for cell in row if cell]
    largest = max(cells, key=cells.count)
    return [[cell if cell == largest else 0 for cell in row] for row in grid]


def crop(grid: Grid) -> Grid:
    """Return the smallest part of the grid that contains all colored cells."""
    rows = [y for y, row in enumerate(grid) if any(row)]
    columns = [x for x, column in enumerate(zip(*grid, strict=True)) if any(column)]
    return [row[columns[0] : columns[-1] + 1] for row in grid[rows[0] : rows[-1] + 1]]


def count_colors(grid: Grid) -> Grid:
    """Draw a bar for each color in ascending order, as long as the number of its cells."""
    cells = sorted(cell for row in grid for cell in row if cell)
    colors = sorted(set(cells))
    longest = max(cells.count(color) for color in colors)
    bars = [[color] * cells.count(color) for color in colors]
    return [bar + [0] * (longest - len(bar)) for bar in bars]


def continue_stripes(grid: Grid) -> Grid:
    """Continue the stripes to the right."""
    period = sum(1 for cell in grid[0] if cell)
    return [[row[x % period] for x in range(len(row))] for row in grid]


def remove_noise(grid: Grid) -> Grid:
    """Remove cells that have no horizontal or vertical neighbor of the same color."""

    def has_neighbor(y: int, x: int) -> bool:
        steps = ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1))
        return any(
            0 <= v < len(grid) and 0 <= u < len(grid[0]) and grid[v][u] == grid[y][x]
            for v, u in steps
        )

    return [
        [cell if has_neighbor(y, x) else 0 for x, cell in enumerate(row)]
        for y, row in enumerate(grid)
    ]


def noisy_boxes(random: Random) -> Grid:
    """Draw a grid with rectangles and scattered single cells."""
    grid = boxes(20, 3)(random)
    for _ in range(25):
        y, x = random.randrange(20), random.randrange(20)
        grid[y][x] = grid[y][x] or random.randint(1, 9)
    return grid


# Input grids, rule and number of test inputs of each task.
OWN_FILE: dict[str, tuple[Draw, Rule, int]] = {
    "mirror": (speckled(3, 3), mirror, 1),
    "turn": (speckled(3, 6, square=False), turn, 2),
    "fall": (speckled(6, 9, 0.3), fall, 1),
    "tile": (speckled(3, 4, 0.7), tile, 1),
    "connect": (two_points, connect, 1),
    "fill_frames": (boxes(12, 2, hollow=True), fill_frames, 1),
    "keep_largest": (boxes(15, 3), keep_largest, 1),
    "outline": (boxes(16, 2), outline, 1),
}
COMBINED: dict[str, tuple[Draw, Rule, int]] = {
    "crop": (boxes(20, 2), crop, 1),
    "count_colours": (speckled(4, 6, 0.6), count_colors, 1),
    "continue_stripes": (beginning_of_stripes, continue_stripes, 2),
    "double": (speckled(3, 10, 0.6), double, 1),
    "remove_noise": (noisy_boxes, remove_noise, 1),
    "stand_up": (speckled(3, 20, 0.4, square=False), transpose, 1),
}


def make_task(name: str, draw: Draw, rule: Rule, tests: int, answers: bool) -> dict[str, object]:
    """Return a task `{"train": [pair, ...], "test": [pair, ...]}`, with outputs of tests or not."""
    random = Random(name)
    inputs: list[Grid] = []
    while len(inputs) < TRAINING_PAIRS + tests:
        grid = draw(random)
        if rule(grid) != grid and grid not in inputs:
            inputs.append(grid)
    pairs: list[dict[str, Grid]] = [{"input": grid, "output": rule(grid)} for grid in inputs]
    train, test = pairs[:TRAINING_PAIRS], pairs[TRAINING_PAIRS:]
    return {
        "train": train,
        "test": test if answers else [{"input": pair["input"]} for pair in test],
    }


def write(path: Path, value: object) -> None:
    """Write a value as one line of JSON."""
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")


def main(folder: Path) -> None:
    """Write all files of example tasks to a folder."""
    for name, (draw, rule, tests) in OWN_FILE.items():
        write(folder / f"{name}.json", make_task(name, draw, rule, tests, answers=True))
    combined = {
        name: make_task(name, draw, rule, tests, answers=False)
        for name, (draw, rule, tests) in COMBINED.items()
    }
    write(folder / "combined_challenges.json", combined)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
