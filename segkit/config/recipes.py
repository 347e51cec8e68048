"""Recipes: settings that go together, under a name. A YAML file in segkit/recipes is all that one takes."""

from pathlib import Path

from segkit.config.files import Setting, read_settings
from segkit.config.names import nearest_name
from segkit.errors import UsageError

RECIPES = Path(__file__).parents[1] / "recipes"


def read_recipe(cls: type, name: str, origin: str) -> dict[str, Setting]:
    """The settings of a recipe, and its name as `recipe`.

    Args:
        cls: The command's settings.
        name: The recipe's name.
        origin: Where it is named.

    Raises:
        ValueError: there is none of that name; the message lists them all.
    """
    names = recipe_names()
    if name not in names:
        if name.endswith((".yaml", ".yml")):
            raise UsageError(f"--recipe takes a name; settings of your own are --config {name}")
        near = nearest_name(name, names)
        said = f"unknown recipe {name!r} ({origin})" if name else "--recipe needs a name"
        hint = f", did you mean {near}? The" if near else "; the"
        raise UsageError(f"{said}{hint} recipes are\n{list_recipes()}")
    settings = read_settings(cls, RECIPES / f"{name}.yaml", f"recipe {name}")
    return {**settings, "recipe": Setting(name, origin)}


def recipe_names() -> list[str]:
    """All names, in order."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def list_recipes() -> str:
    """A line for each recipe: its name, and the first line of its comment."""
    names = recipe_names()
    width = max(map(len, names))
    return "\n".join(f"  {name:{width}}  {_summary(RECIPES / f'{name}.yaml')}" for name in names)


def _summary(file: Path) -> str:
    first = file.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
