from pathlib import Path

import pytest

from builder.config import Config
from builder.errors import ConfigError

TRAINED = """\
name: movies
data:
  items: {path: items.parquet, id: item_id, features: [{name: genres, kind: tags, filter: true}]}
  users: {path: users.parquet, id: user_id, features: [{name: age, kind: number}]}
  interactions: {path: ratings.parquet, user: user_id, item: item_id}
"""
GIVEN = "name: given\nembeddings: {path: vectors.npy}\n"


def load(folder: Path, text: str) -> Config:
    path = folder / "retrieval.yaml"
    path.write_text(text)
    return Config.load(path)


def fault(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    return str(caught.value).replace(f"{folder}/retrieval.yaml", "FILE")


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, TRAINED)
    assert config.items.path == tmp_path / "items.parquet"
    assert config.data.interactions is not None
    assert config.data.interactions.path == tmp_path / "ratings.parquet"


def test_absolute_paths_stay(tmp_path: Path) -> None:
    config = load(tmp_path, GIVEN.replace("vectors.npy", "/data/vectors.npy"))
    assert config.embeddings is not None
    assert config.embeddings.path == Path("/data/vectors.npy")


def test_round_trip(tmp_path: Path) -> None:
    config = load(tmp_path, TRAINED + "index: {probes: 3, recall: 0.9}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load(elsewhere, config.to_yaml()) == config
    given = load(tmp_path, GIVEN)
    assert load(elsewhere, given.to_yaml()) == given
    ruled = load(tmp_path, TRAINED + "diversity: {at_most: {genres: 2}, mmr: 0.5}\n")
    assert load(elsewhere, ruled.to_yaml()) == ruled


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("netwerk: {}", "FILE, netwerk: unknown key.\n  Did you mean 'network'? Known: name, data, tasks, embeddings"),
        ("value: 2024-13-45", "FILE, line 6, column 8: is not YAML: '2024-13-45' is no timestamp"),
        ("training: {epochs: " + "9" * 5000 + "}", "FILE, line 6, column 20: is not YAML: '99999"),
        ("training: {epochs: !!int x}", "FILE, line 6, column 20: is not YAML: 'x' is no int"),
        ("training: {compile: !!bool x}", "FILE, line 6, column 21: is not YAML: 'x' is no bool"),
        (
            "training: {learning_rate: 1e-3}",
            "FILE, training.learning_rate: got '1e-3', expected a valid number\n  YAML takes that for text: write",
        ),
        ("training: {batch: 99999999999999999999}", "FILE, training.batch: got 99999999999999999999, expected less"),
        ("training: {negatives: 99999999999999999999}", "FILE, training.negatives: got 99999999999999999999, expected"),
        (
            "network: {dimz: 3}",
            "FILE, network.dimz: unknown key.\n  Did you mean 'dims'? Known: dims, history, user_id, pool",
        ),
        ("network: {dims: '64'}", "FILE, network.dims: got '64', expected a valid integer"),
        ("network: {dims: true}", "FILE, network.dims: got True, expected a valid integer"),
        ("network: {dims: 1}", "FILE, network.dims: got 1, expected greater than or equal to 4"),
        ("network: {pooling: max}", "FILE, network.pooling: got 'max', expected 'mean' or 'attention'"),
        ("network: {pooling: attention, history: 0}", "FILE, network: pooling: attention reads histories: set history"),
        ("network: {pooling: attention, dims: 32, heads: 3}", "FILE, network: got 32 dims and 3 heads, expected heads"),
        ("network: {pooling: attention}", "FILE: network.pooling: attention reads order: set data.interactions.time"),
        ("network: {dropout: 0.5}", "FILE, network: dropout is of attention: set pooling: attention, or leave it out"),
        (
            "training: {epochs: 0}",
            "FILE, training: epochs: 0 leaves the towers as they start: set at least 1, or start",
        ),
        ("training: {start: svd}", "FILE, training.start: got 'svd', expected 'random' or 'spectral'"),
        (
            "training: {start: spectral}\nnetwork: {history: 0}",
            "FILE: training.start: spectral knows a user by the mean of a history: set network.history above 0",
        ),
        ("training: {temperature: .nan}", "FILE, training.temperature: got nan, expected a finite number"),
        ("index: {clusters: many}", "FILE, index.clusters: got 'many', expected 'auto' or a valid integer"),
        ("index: {clusters: 2, probes: 3}", "FILE, index: probes 3 exceed clusters 2"),
        ("index: {results: 9, max_candidates: 8}", "FILE, index: results 9 exceed max_candidates 8"),
        ("index: {results: 9, candidates: 8}", "FILE, index: candidates 8 must lie between results 9 and max_cand"),
        ("diversity: {}", "FILE, diversity: holds no rule; set at_most or mmr"),
        ("diversity: {at_most: {}}", "FILE, diversity: holds no rule; set at_most or mmr"),
        ("diversity: {mmr: 1.5}", "FILE, diversity.mmr: got 1.5, expected less than or equal to 1"),
        ("diversity: {mmr: -0.1}", "FILE, diversity.mmr: got -0.1, expected greater than or equal to 0"),
        ("diversity: {mmr: .nan}", "FILE, diversity.mmr: got nan, expected "),
        ("diversity: {mrm: 1}", "FILE, diversity.mrm: unknown key.\n  Did you mean 'mmr'? Known: at_most, mmr."),
        (
            "diversity: {at_most: {genres: 0}}",
            "FILE, diversity.at_most.genres: got 0, expected greater than or equal to 1",
        ),
        ("diversity: {at_most: {genres: two}}", "FILE, diversity.at_most.genres: got 'two', expected a valid integer"),
        ("diversity: {at_most: {genres: 1.5}}", "FILE, diversity.at_most.genres: got 1.5, expected a valid integer"),
        ("diversity: {at_most: [genres]}", "FILE, diversity.at_most: got ['genres'], expected an object"),
        (
            "diversity: {at_most: {genre: 2}}",
            "FILE: diversity.at_most: unknown feature 'genre'; expected a category or tags: genres",
        ),
        (
            "diversity: {at_most: {genres: 2, age: 1}}",
            "FILE: diversity.at_most: unknown feature 'age'; expected a category or tags: genres",
        ),
        ("split: {kind: file}", "FILE, split: kind file goes with a test file, and only that kind"),
        ("split: {test: test.csv}", "FILE, split: kind file goes with a test file, and only that kind"),
        ("split: {validation_blocks: true}", "FILE, split: validation_blocks goes with kind file: leave-last-out"),
        ("split: {kind: random}", "FILE, split.kind: got 'random', expected 'leave-last-out' or 'file'"),
        ("embeddings: {path: v.npy}", "FILE: expected exactly one of data.interactions and embeddings"),
        ("name: again", "FILE, line 6, column 1: is not YAML: key 'name' twice"),
        ("network: [1", "FILE, line 7, column 1: is not YAML: expected ',' or ']'"),
        ("? [a, b]\n: 1", "FILE, line 6, column 3: is not YAML: expected plain text before the colon"),
        ("other: " + "[" * 5000, "FILE: is nested too deeply"),
        ("other: &a [*a]", "FILE: says what no setting can be: Circular reference"),
        ("2020-01-01: 1", "FILE: says what no setting can be: keys must be str"),
        ("network: {task_groups: [[score]]}", "FILE: network.task_groups: got [['score']], expected at least two"),
        ("network: {task_groups: shared}", "FILE, network.task_groups: got 'shared', expected"),
        (
            "tasks: {a: true, b: true}\nnetwork: {task_groups: [[a], [c]]}",
            "FILE: network.task_groups: unknown task 'c'; expected each of the tasks once: a, b",
        ),
        (
            "tasks: {a: true, b: true}\nnetwork: {task_groups: [[a], [b, a]]}",
            "FILE: network.task_groups: 'a' is named 2 times; expected each of the tasks once: a, b",
        ),
        (
            "tasks: {a: true, b: true, c: true}\nnetwork: {task_groups: [[a], [b]]}",
            "FILE: network.task_groups: 'c' is in no group; expected each of the tasks once: a, b, c",
        ),
        (
            "tasks: {a: true, b: true}\nnetwork: {task_groups: [[a], [b], []]}",
            "FILE: network.task_groups: got [['a'], ['b'], []], expected at least two groups, none of them empty",
        ),
        (
            "tasks: {a: true, b: true, c: true}\nnetwork: {task_groups: [[a], [b, c]]}",
            "FILE: rerank is missing: without it tasks that share a vector have one score; add it, or give each task",
        ),
        ("tasks: {a: true, b: true}\nnetwork: {task_groups: [[a], [b]]}", ""),
        ("tasks: {}", "FILE, tasks: got {}, expected"),
        ("tasks: {like: rating}", "FILE, tasks: like: got 'rating', expected true, or a column compared with a number"),
        ("tasks: {like: false}", "FILE, tasks: like: got 'False', expected true"),
        ("tasks: {like: rating > x}", "FILE, tasks: like: column 10: got x, expected a finite number"),
        ("tasks: {to like: true}", "FILE, tasks: got 'to like', expected a Python identifier"),
        ("network: {user_id: false, history: 0}\n", ""),
    ],
)
def test_faults_name_the_field(tmp_path: Path, added: str, message: str) -> None:
    if not message:  # a user feature is input enough
        load(tmp_path, TRAINED + added)
        return
    assert fault(tmp_path, TRAINED + added + "\n").startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("history", "'history' is the name of another input"),
        ("class", "got 'class', expected a Python identifier"),
        (
            "my-feature",
            "got 'my-feature', expected a Python identifier that is no keyword and has no leading '_' (column: ",
        ),
        ("_hidden", "got '_hidden', expected a Python identifier"),
    ],
)
@pytest.mark.parametrize("table", ["items", "users"])
def test_feature_names(tmp_path: Path, name: str, message: str, table: str) -> None:
    old = "genres" if table == "items" else "age"
    found = fault(tmp_path, TRAINED.replace(f"name: {old}", f"name: {name}"))
    assert found.startswith(f"FILE, data.{table}.features[0].name: {message}")


@pytest.mark.parametrize("name", ["bool", "NoneType"])
def test_user_features_are_arguments_of_torchscript(tmp_path: Path, name: str) -> None:
    found = fault(tmp_path, TRAINED.replace("name: age", f"name: {name}"))
    assert f"{name!r} is no argument that TorchScript takes; rename the feature (column: keeps" in found
    assert load(tmp_path, TRAINED.replace("name: genres", f"name: {name}")).items.features[0].name == name


def test_feature_faults(tmp_path: Path) -> None:
    item = "{name: genres, kind: tags, filter: true}"
    twice = fault(tmp_path, TRAINED.replace(item, f"{item}, {item}"))
    assert twice == "FILE, data.items.features: feature named twice: genres"
    unknown = fault(tmp_path, TRAINED.replace("kind: tags", "kind: tag"))
    assert unknown == ("FILE, data.items.features[0].kind: got 'tag', expected 'category', 'tags', 'number' or 'date'")
    assert "separator goes with kind tags" in fault(tmp_path, TRAINED.replace("kind: tags", "kind: date, separator: x"))
    assert "format goes with kind date" in fault(tmp_path, TRAINED.replace("kind: tags", "kind: tags, format: x"))
    assert "'user_id' is taken" in fault(tmp_path, TRAINED.replace("name: age", "name: user_id"))
    assert "values are read from the table" in fault(
        tmp_path, TRAINED.replace("kind: number", "kind: category, values: string")
    )


@pytest.mark.parametrize("kind", ["number", "date"])
def test_rules_are_of_features_that_items_share(tmp_path: Path, kind: str) -> None:
    text = TRAINED.replace("kind: tags", f"kind: {kind}") + "diversity: {at_most: {genres: 2}}\n"
    message = f"FILE: diversity.at_most: 'genres' is a {kind}; expected a category or tags: data.items has none"
    assert fault(tmp_path, text) == message
    assert "unknown feature 'genres'" in fault(tmp_path, GIVEN + "diversity: {at_most: {genres: 2}}")


def test_rules_as_they_are_written(tmp_path: Path) -> None:
    rules = load(tmp_path, TRAINED + "diversity: {at_most: {genres: 2}, mmr: 1}").diversity
    assert rules is not None
    assert (rules.at_most, rules.mmr) == ({"genres": 2}, 1.0)
    rules = load(tmp_path, GIVEN + "diversity: {mmr: 0.5}").diversity
    assert rules is not None
    assert (rules.at_most, rules.mmr) == ({}, 0.5)


def test_several_faults_are_all_told(tmp_path: Path) -> None:
    found = fault(tmp_path, TRAINED + "network: {dims: 1.5}\ntraining: {epoch: 3}\n")
    assert found == (
        "FILE: 2 faults\n  network.dims: got 1.5, expected a valid integer\n"
        "  training.epoch: unknown key. Did you mean 'epochs'? Known: start, epochs, batch, negatives, "
        "learning_rate, temperature, patience, seed, mixed_precision, compile."
    )


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        Config.load(tmp_path / "none.yaml")
    assert fault(tmp_path, "just text") == "FILE: got 'just text', expected keys with values"
    assert fault(tmp_path, "") == "FILE: got None, expected keys with values"
    (tmp_path / "retrieval.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"is not UTF-8(.|\n)*Expected the text of a retrieval\.yaml"):
        Config.load(tmp_path / "retrieval.yaml")
    assert fault(tmp_path, "data: {}") == "FILE, name: is missing."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GIVEN + "network: {pooling: attention}", "network.pooling is of a tower that is trained here: leave it out"),
        (GIVEN + "network: {task_groups: [[a], [b]]}", "network.task_groups is of a tower that is trained here"),
        (
            TRAINED.replace("item: item_id}", "item: item_id, time: time}")
            + "split: {kind: file, test: test.parquet, validation_blocks: true}",
            "split.validation_blocks: with data.interactions.time the last items are held out",
        ),
        (
            TRAINED.replace("item: item_id}", "item: item_id, time: time}")
            + "training: {start: spectral}\nnetwork: {pooling: attention}",
            "set network.history above 0 and pooling: mean, or start: random",
        ),
        (GIVEN + "training: {epochs: 1}", "embeddings are not trained: leave out training"),
        (GIVEN + "network: {history: 3}", "set embeddings.query or leave them out"),
        (GIVEN + "data: {users: {features: []}}", "set embeddings.query or leave them out"),
        (
            "name: x\nembeddings: {path: v.npy, query: t.pt}\ndata: {users: {features: [{name: a, kind: category}]}}",
            "'a': with embeddings a category needs values: integer or string",
        ),
        ("name: x", "expected exactly one of data.interactions and embeddings"),
        ("name: a b\nembeddings: {path: v.npy}", "got 'a b', expected letters, digits"),
        ("name: x\ndata: {interactions: {path: a, user: b, item: c}}", "data.items is missing"),
    ],
)
def test_combinations(tmp_path: Path, text: str, message: str) -> None:
    assert message in fault(tmp_path, text)
