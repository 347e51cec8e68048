"""Recipes: named sets of settings. Each YAML file in segkit/recipes is a recipe."""

from pathlib import Path

from segkit.config.yaml_files import Setting, read_settings
from segkit.errors import UsageError
from segkit.names import nearest

RECIPES = Path(__file__).parents[1] / "recipes"


def read_recipe(cls: type, name: str, origin: str, folder: Path = RECIPES) -> dict[str, Setting]:
    """Return the settings of a recipe, and its name as the setting `recipe`.

    Args:
        cls: The settings class of the command.
        name: Name of the recipe.
        origin: Where the name comes from, for messages.
        folder: Folder of the recipes.

    Raises:
        UsageError: There is no recipe of that name; the message lists all recipes.
    """
    names = recipe_names(folder)
    if name not in names:
        if name.endswith((".yaml", ".yml")):
            raise UsageError(f"`recipe` takes a name; read your own file with --config {name}")
        near = nearest(name, names)
        said = f"unknown recipe {name!r} ({origin})" if name else "`recipe` needs a name"
        hint = f", did you mean {near}? The" if near else "; the"
        raise UsageError(f"{said}{hint} recipes are\n{list_recipes(folder)}")
    settings = read_settings(cls, folder / f"{name}.yaml", f"recipe {name}")
    return {**settings, "recipe": Setting(name, origin)}


def recipe_names(folder: Path = RECIPES) -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def list_recipes(folder: Path = RECIPES) -> str:
    """Return one line per recipe: its name, and the first line of its comment."""
    names = recipe_names(folder)
    width = max(map(len, names))
    lines = []
    for name in names:
        first = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        lines.append(f"  {name:{width}}  {first.removeprefix('#').strip() if first.startswith('#') else ''}")
    return "\n".join(lines)
