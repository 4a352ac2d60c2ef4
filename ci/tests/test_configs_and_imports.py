"""Every config of the repository loads and holds what its name says; importing a module has no side effects."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from core.engine.map_method import MapMethod
from core.engine.precision import PRECISIONS
from core.heads.build import MARGINS
from core.images.transforms import NORMALIZATIONS
from core.program import load_method
from core.settings import MapSettings, MapTrainingSettings, Settings, describe, load_settings

ROOT = Path(__file__).resolve().parents[2]
ALL_METHODS = {path.parent: load_method(path) for path in sorted(ROOT.glob("methods/*/train.py"))}
MAPS = [folder for folder, method in ALL_METHODS.items() if isinstance(method, MapMethod)]
METHODS = [folder for folder in ALL_METHODS if folder not in MAPS]
"""The methods that train an embedding model; `MAPS` fit maps between two."""
PROGRAM_CONFIGS = sorted(
    path for folder in (ROOT / "old_model", *METHODS) for path in (folder / "configs").glob("*.py")
)
MAP_CONFIGS = sorted(path for folder in MAPS for path in (folder / "configs").glob("*.py"))
SHARED_MAP_CONFIGS = sorted((ROOT / "configs" / "maps").glob("*.py"))
SHARED_CONFIGS = sorted(path for room in ("scenarios", "datasets") for path in (ROOT / "configs" / room).glob("*.py"))
SETTINGS_TYPES = {folder: method.settings_type for folder, method in ALL_METHODS.items()}
SETTINGS_TYPES[ROOT / "old_model"] = load_method(ROOT / "old_model" / "train.py").settings_type
SETTINGS_TYPES |= {ROOT / "configs" / "maps": MapSettings}
CONTRACT_KEYS = """rec network embedding_size batch_size num_epoch warmup_epoch lr optimizer momentum weight_decay
    sample_rate gradient_acc seed num_workers frequent verbose rec_val val_targets output resume old_model""".split()
PARTS = {
    "class70": "train_part_70_class", "data70": "train_part_70_data",
    "OPclass": "train_part_70_class", "OPdata": "train_part_70_data", "EXclass": "train", "EXdata": "train",
    "class30": "train_part_30_class", "data30": "train_part_30_data", "data100": "train",
}  # fmt: skip
LISTS = {
    "EXclass": "train_clean_part_100_class.txt", "EXdata": "train_clean.txt", "data100": "train_clean.txt",
    "class30": "train_clean_part_30_class.txt", "data30": "train_clean_part_30_data.txt",
    "EXbackbone_class": "train_clean_part_30_class.txt", "EXbackbone_data": "train_clean_part_30_data.txt",
}  # fmt: skip
LOSSES = {"arc": "arcface", "softmax": "softmax"}
FACES = "datasets/ms1m-retinaface-t1/"
RELEASED_SCENARIOS = {
    # name: old model, new model's D, images of the new model; an r50 with ArcFace, compatible with an r18
    "EXclass arc_to_arc f512": ("f512_r18_arc_class30", 512, "train"),
    "EXclass softmax_to_arc f128": ("f128_r18_softmax_class30", 128, "train"),
    "EXdata arc_to_arc f512": ("f512_r18_arc_data30", 512, "train"),
    "EXdata softmax_to_arc f512": ("f512_r18_softmax_data30", 512, "train"),
    "OPclass arc_to_arc f512": ("f512_r18_arc_class30", 512, "train_part_70_class"),
    "OPclass softmax_to_arc f128": ("f128_r18_softmax_class30", 128, "train_part_70_class"),
    "OPclass softmax_to_arc f256": ("f256_r18_softmax_class30", 256, "train_part_70_class"),
    "OPdata arc_to_arc f512": ("f512_r18_arc_data30", 512, "train_part_70_data"),
    "OPdata softmax_to_arc f512": ("f512_r18_softmax_data30", 512, "train_part_70_data"),
}
RELEASED_MODELS = {
    "f128_r18_softmax_class30": ("r18", 128, "softmax", "train_part_30_class"),
    "f256_r18_softmax_class30": ("r18", 256, "softmax", "train_part_30_class"),
    "f512_r18_arc_class30": ("r18", 512, "arcface", "train_part_30_class"),
    "f128_r18_softmax_data30": ("r18", 128, "softmax", "train_part_30_data"),
    "f512_r18_softmax_data30": ("r18", 512, "softmax", "train_part_30_data"),
    "f512_r18_arc_data30": ("r18", 512, "arcface", "train_part_30_data"),
    "f128_r50_arc_data100": ("r50", 128, "arcface", "train"),
    "f256_r50_arc_data100": ("r50", 256, "arcface", "train"),
    "f512_r50_arc_data100": ("r50", 512, "arcface", "train"),
}
OWN_MODELS = {
    "f128_r50_arc_class70": ("r50", 128, "arcface", "train_part_70_class"),
    "f256_r50_arc_class70": ("r50", 256, "arcface", "train_part_70_class"),
    "f512_r50_arc_class70": ("r50", 512, "arcface", "train_part_70_class"),
    "f512_r50_arc_data70": ("r50", 512, "arcface", "train_part_70_data"),
}
"""The configs that MixBCT's repository has for each method, and those of its old models and upper bounds."""


def loaded(path: Path):
    kinds = [SETTINGS_TYPES[folder] for folder in (path.parents[1], path.parent) if folder in SETTINGS_TYPES]
    return load_settings(path, settings_type=kinds[0] if kinds else Settings)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def check_each(configs: Iterable[Path], check: Callable[[Path], None]) -> None:
    """Call `check` with each config; fails at the end with a line for each config that did not pass."""
    configs, failures = list(configs), []
    for path in configs:
        try:
            check(path)
        except Exception as error:
            failures.append(f"{name_of(path)}: {type(error).__name__}: {error}")
    assert configs and not failures, f"{len(failures)} of {len(configs)} configs fail\n" + "\n".join(failures)


def test_every_config_loads():
    def check(path: Path) -> None:
        assert loaded(path).lr > 0

    check_each(PROGRAM_CONFIGS + SHARED_CONFIGS, check)


def plain(name: str) -> str:
    return name.replace("_", "").lower()


def scenario_configs() -> list[Path]:
    return [path for path in PROGRAM_CONFIGS + SHARED_CONFIGS if re.match("(OP|EX)(class|data|backbone)_", path.stem)]


def test_every_scenario_config_holds_what_its_name_says():
    check_each(scenario_configs(), check_scenario)


def check_scenario(path: Path) -> None:
    pattern = r"((?:OP|EX|EXbackbone_)(class|data))_(\w+?)_(\w+?)_to_(r\w*?\d+)_(?:(\w+?)_)?"
    pattern += r"(arc|softmax)_to_(arc|softmax)_f(\d+)"
    setting, split, data, old_network, network, method, old_loss, loss, size = re.fullmatch(pattern, path.stem).groups()
    config = loaded(path)
    assert Path(config.rec).name == (PARTS if data == "ms1mv3" else LISTS)[setting]
    assert (config.network, config.embedding_size, config.loss) == (network, int(size), LOSSES[loss])
    of_data = "" if data == "ms1mv3" else f"{data}_"
    assert config.old_model == f"work_dirs/{of_data}f{size}_{old_network}_{old_loss}_{split}30"
    old = loaded(ROOT / "old_model" / "configs" / f"{Path(config.old_model).name}.py")
    assert (old.network, old.embedding_size, old.loss) == (old_network, int(size), LOSSES[old_loss])
    assert (old.normalization, old.image_size, old.image_root) == (
        config.normalization, config.image_size, config.image_root
    )  # fmt: skip
    assert old.output == config.old_model and Path(old.rec).parent == Path(config.rec).parent
    assert method is None or plain(path.parents[1].name) in plain(method)


def test_every_method_has_the_released_scenarios_of_faces_and_landmarks_and_the_built_in_data():
    scenarios = {path.stem for path in scenario_configs() if path.parent.name == "scenarios"}
    assert sum("ms1mv3" in name for name in scenarios) == 9 and sum("gldv2" in name for name in scenarios) == 6
    for method in METHODS:
        names = {path.stem for path in (method / "configs").glob("*.py")}
        assert {"glyphs", "orl", "glyphs_retrieval"} <= names
        released = {name for name in names if name.startswith(("OP", "EX"))}
        released = {re.sub(r"(_to_r\w*?\d+)_\w+?_((arc|softmax)_to)", r"\1_\2", name) for name in released}
        assert released == scenarios


def test_every_old_model_config_holds_what_its_name_says():
    def check(path: Path) -> None:
        pattern = r"(?:gldv2_)?f(\d+)_(\w+)_(arc|softmax)_(class30|class70|data30|data70|data100)"
        size, network, loss, part = re.fullmatch(pattern, path.stem).groups()
        config = loaded(path)
        assert (config.embedding_size, config.network, config.loss) == (int(size), network, LOSSES[loss])
        assert Path(config.rec).name == (LISTS if "gldv2" in path.stem else PARTS)[part]
        assert config.output == f"work_dirs/{path.stem}"

    folder = ROOT / "old_model" / "configs"
    check_each([*folder.glob("f*.py"), *folder.glob("gldv2_*.py")], check)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_configs_of_the_released_scenarios_have_the_released_models_and_images(method):
    names = set()
    for path in method.glob("configs/*_ms1mv3_*.py"):
        pattern = r"(\w+?)_ms1mv3_r18_to_r50_\w+_((?:arc|softmax)_to_arc)_(f\d+)"
        name = " ".join(re.fullmatch(pattern, path.stem).groups())
        config = loaded(path)
        found = (Path(config.old_model).name, config.embedding_size, config.rec.removeprefix(FACES))
        assert (name, *found) == (name, *RELEASED_SCENARIOS[name])
        assert (config.network, config.loss) == ("r50", "arcface")
        check_faces(config)
        names.add(name)
    assert names == set(RELEASED_SCENARIOS)


def test_configs_of_the_released_old_models_and_upper_bounds_are_all_there():
    found = {}
    for path in (ROOT / "old_model" / "configs").glob("f*.py"):
        config = loaded(path)
        check_faces(config)
        found[path.stem] = (config.network, config.embedding_size, config.loss, config.rec.removeprefix(FACES))
    assert found == RELEASED_MODELS | OWN_MODELS


def check_faces(config: Settings) -> None:
    assert (config.batch_size, config.num_epoch, config.warmup_epoch, config.seed) == (128, 35, 0, 666)
    assert (config.optimizer, config.lr, config.momentum, config.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert (config.schedule, config.schedule_power) == ("polynomial", 2.0) or config.schedule_epochs == (20, 26, 32)
    assert (config.clip_norm, config.sample_rate, config.augment) == (5.0, 1.0, ("flip",))
    assert (config.margin_scale, config.margin, config.classifier_bias) == (64.0, 0.5, True)


def test_every_landmark_config_has_the_settings_of_the_benchmark():
    check_each([path for path in PROGRAM_CONFIGS if "gldv2" in path.stem], check_landmarks)


def check_landmarks(path: Path) -> None:
    config = loaded(path)
    assert (config.image_size, config.normalization, config.augment) == (224, "imagenet", ())
    assert config.network_options == {"pretrained": "imagenet"} and not config.classifier_bias
    epochs = 10 if re.match(r"gldv2_f256_resnet18_softmax_(class|data)30", path.stem) else 30
    assert (config.batch_size, config.num_epoch, config.lr, config.momentum) == (256, epochs, 0.1, 0.9)
    assert (config.precision, config.clip_norm, config.seed) == ("fp32", 0, 1234)
    assert (config.schedule, config.schedule_epochs, config.schedule_gamma) == ("step", (5, 10, 20), 0.1)
    assert (config.optimizer, config.weight_decay, config.margin_scale, config.margin) == ("sgd", 5e-4, 30, 0.3)
    own = {
        "advbct": {"threshold": 1.0, "p2s_weight": 1.0, "adv_weight": 1.0},
        "bct": {"old_classifier": "own"},
        "hot_refresh": {"hardest_negatives": 10, "temperature": 0.01, "new_to_new": True},
        "lce": {"transform_blocks": 0, "boundary_weight": 1.0, "align_weight": 1.0},
        "unibct": {"refine_epochs": (), "compat_scale": 30.0, "compat_margin": 0.3},
    }.get(path.parents[1].name, {})
    assert {key: getattr(config, key) for key in own} == own
    assert getattr(config, "old_classes_only", path.stem.startswith("EXclass")) == path.stem.startswith("EXclass")


@pytest.mark.parametrize(
    "data, old_part, new_part",
    [
        ("glyphs", "train_part_30_class", "train_part_70_class"),
        ("orl", "train_part_30_data", "train"),
        ("glyphs_retrieval", "train_part_30_class", "train"),
    ],
)
def test_built_in_configs_train_old_and_new_on_their_parts_with_one_embedding_size(data, old_part, new_part):
    old, alone = (loaded(ROOT / "old_model" / "configs" / f"{name}.py") for name in (data, f"{data}_independent"))
    for path in (method / "configs" / f"{data}.py" for method in METHODS):
        new = loaded(path)
        assert new.old_model == old.output and new.embedding_size == old.embedding_size == alone.embedding_size
        folder = f"datasets/{data.removesuffix('_retrieval')}"
        assert (old.rec, new.rec) == (f"{folder}/{old_part}", f"{folder}/{new_part}")
        assert alone.rec == new.rec and alone.network_options == new.network_options and alone.lr == new.lr
        assert getattr(new, "old_classes_only", data == "glyphs_retrieval") == (data == "glyphs_retrieval")


def test_every_map_has_the_released_scenarios_and_the_built_in_data():
    shared = {path.stem for path in SHARED_MAP_CONFIGS}
    assert shared == {path.stem for path in (ROOT / "configs" / "scenarios").glob("*.py")}
    for method in MAPS:
        names = {path.stem for path in (method / "configs").glob("*.py")}
        assert {re.sub(r"(_to_r\w*?\d+)_\w+?_((arc|softmax)_to)", r"\1_\2", name) for name in names} == shared


def test_every_config_of_a_map_names_models_that_a_config_trains_on_those_images():
    outputs = {loaded(path).output: loaded(path) for path in (ROOT / "old_model" / "configs").glob("*.py")}

    def check(path: Path) -> None:
        config = loaded(path)
        old, new = outputs[config.old_model], outputs[config.new_model]
        assert config.rec == new.rec and config.image_root == new.image_root  # so its classifier knows the labels
        assert (old.rec == new.rec) == path.stem.startswith("EXbackbone")
        pattern = r"(OP|EX|EXbackbone_)(class|data)_[^_]+_(\w+?)_to_(r\w*?\d+)_(?:(\w+?)_)?(\w+)_to_(\w+)_f(\d+)"
        name = re.fullmatch(pattern, path.stem)
        if name is None:
            return
        setting, split, old_network, network, method, old_loss, loss, size = name.groups()
        assert (old.network, new.network) == (old_network, network)
        assert (old.embedding_size, new.embedding_size) == (int(size), int(size))
        assert (old.loss, new.loss) == (LOSSES[old_loss], LOSSES[loss]) and config.old_model.endswith(f"_{split}30")
        assert config.new_model.endswith({"OP": f"_{split}70", "EX": "_data100", "EXbackbone_": f"_{split}30"}[setting])
        assert method is None or plain(path.parents[1].name) == plain(method)

    check_each(MAP_CONFIGS + SHARED_MAP_CONFIGS, check)


def names_of(settings_type: type[Settings]) -> set[str]:
    return {field.name for field in fields(settings_type)}


def test_keys_of_the_contract_exist():
    assert set(CONTRACT_KEYS) <= names_of(Settings)


PARENTS = {folder: MapSettings if folder in MAPS else Settings for folder in SETTINGS_TYPES}
"""Of each program's settings the class that other programs share."""


@pytest.mark.parametrize("shared", [Settings, MapSettings, MapTrainingSettings])
def test_every_shared_key_is_read_by_some_code(shared):
    rooms = ROOT / "core", ROOT / "old_model", ROOT / "methods"
    assert unread(names_of(shared), rooms) == []


@pytest.mark.parametrize("folder", ALL_METHODS, ids=lambda folder: folder.name)
def test_every_key_of_a_method_is_read_by_some_code(folder):
    own = names_of(SETTINGS_TYPES[folder]) - names_of(PARENTS[folder])
    assert unread(own, [folder, ROOT / "core"] if folder in MAPS else [folder]) == []


def unread(names: set[str], rooms: Iterable[Path]) -> list[str]:
    code = "".join(path.read_text() for room in rooms for path in room.rglob("*.py") if "configs" not in path.parts)
    return [name for name in names if not re.search(rf"\b(settings|self)\.{name}\b", code)]


@pytest.mark.parametrize("folder", ALL_METHODS, ids=lambda folder: folder.name)
def test_help_has_a_heading_for_the_keys_of_each_method(folder):
    kind = SETTINGS_TYPES[folder]
    assert describe(kind).count("\n  ") >= len(names_of(kind))
    bases = [base for base in kind.__mro__[1:-1] if base not in (Settings, MapSettings) or base is PARENTS[folder]]
    known = set().union(*(names_of(base) for base in bases))
    own = [field for field in fields(kind) if field.name not in known]
    assert [bool(field.metadata["heading"]) for field in own] == [number == 0 for number in range(len(own))]


def test_choices_of_the_settings_are_those_that_the_code_knows():
    choices = {name: get_args(kind) for name, kind in get_type_hints(Settings).items()}
    assert set(choices["normalization"]) == set(NORMALIZATIONS)
    assert set(choices["loss"]) == {"softmax", *MARGINS}
    assert set(choices["precision"]) == {"auto", *PRECISIONS}


IMPORT_ALL = """
import importlib, importlib.util, os, pathlib, random, sys
import numpy, torch
def surroundings():
    return {"files": sorted(pathlib.Path().iterdir()), "sys.path": list(sys.path), "folder": os.getcwd(),
            "random": random.getstate(), "numpy": numpy.random.get_state()[1].tolist(), "torch": torch.initial_seed(),
            "threads": torch.get_num_threads()}

root = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(root / "tools"))  # as when a tool is run
before = surroundings()
for path in sorted(root.glob("core/**/*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name)
for number, path in enumerate([*root.glob("tools/*.py"), *root.glob("old_model/*.py"), *root.glob("methods/*/*.py")]):
    spec = importlib.util.spec_from_file_location(f"program_{number}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
assert not torch.distributed.is_initialized(), "a process group was made"
after = surroundings()
assert before == after, [name for name in before if before[name] != after[name]]
print("imported", number + 1)
"""


def test_every_module_imports_without_output_files_seeds_or_process_group(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"imported \d+\n", result.stdout) and result.stderr == ""


def test_methods_import_neither_each_other_nor_tools_and_core_imports_no_program():
    for room, forbidden in (("core", "methods|old_model|tools"), ("methods", "methods|old_model|tools")):
        for path in (ROOT / room).rglob("*.py"):
            assert not re.search(rf"^\s*(from|import) ({forbidden})\b", path.read_text(), re.MULTILINE), path
