"""The preference study: pairs, votes, shares, pages."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from dreamfleet import cli
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.preference import (
    Pair,
    Votes,
    load_pairs,
    preference_app,
    preference_shares,
    share_lines,
)
from dreamfleet.evaluation.preference.pages import a_is_left, order_for
from dreamfleet.evaluation.preference.votes import Vote
from dreamfleet.evaluation.results import RESULTS, read_rows, write_rows

PROMPTS = ("a photo of sks dog in the snow", "a photo of <i>sks</i> dog")


def results(
    folder: Path, colour: int, seeds: tuple[int, ...] = (1, 2), train_seed: int = 0
) -> Path:
    """An evaluation's output: the bare base and an arm, pictures of one colour."""
    rows = []
    for host, steps in (("base", 0), ("recipe", 9)):
        for prompt in PROMPTS:
            for seed in seeds:
                name = f"{host}-{PROMPTS.index(prompt)}-{seed}.png"
                folder.mkdir(exist_ok=True)
                pixels = np.full((8, 8, 3), colour if host != "base" else 0, np.uint8)
                Image.fromarray(pixels).save(folder / name)
                rows.append({"subject": "rex", "prompt": prompt, "host": host, "steps": steps,
                             "seed": train_seed, "noise_seed": seed, "kind": "scene",
                             "picture": name})  # fmt: skip
    write_rows(folder / RESULTS, rows)
    (folder / "references" / "rex").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "blue").save(folder / "references" / "rex" / "00.png")
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    return load_pairs(results(tmp_path / "a", 200), results(tmp_path / "b", 100))


class TestPairs:
    def test_same_subject_prompt_and_noise(self, pairs: list[Pair]) -> None:
        assert len(pairs) == len({pair.pair_id for pair in pairs}) == 4
        assert all(pair.a.name == pair.b.name for pair in pairs)
        assert all(pair.a.name.startswith("recipe") for pair in pairs)  # never the bare base
        assert all(len(pair.references) == 1 for pair in pairs)

    def test_other_pictures_are_other_pairs(self, pairs: list[Pair], tmp_path: Path) -> None:
        again = load_pairs(tmp_path / "a", results(tmp_path / "b", 90))
        assert not {pair.pair_id for pair in pairs} & {pair.pair_id for pair in again}

    def test_results_count_votes_on_present_pictures_only(
        self, pairs: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        places = str(tmp_path / "a"), str(tmp_path / "b")
        votes = [Vote("me", pairs[0].pair_id, "text", "a"), Vote("me", "gone", "text", "b")]
        Votes(tmp_path / "v.db", *places).add(votes)
        arguments = ["preference", *places, "--votes", str(tmp_path / "v.db"), "--results"]
        assert cli.main(arguments) == 0
        said = capsys.readouterr()
        assert "100.0%" in said.out and "1 votes of 1 people" in said.out
        assert "1 votes on other pictures" in said.err

    def test_adapters_of_other_training_seeds_are_compared(self, tmp_path: Path) -> None:
        a = results(tmp_path / "a", 200)
        assert len(load_pairs(a, results(tmp_path / "b", 100, train_seed=7))) == 4

    def test_of_each_subject_the_last_step_and_of_one_host_only(self, tmp_path: Path) -> None:
        a, b = results(tmp_path / "a", 200), results(tmp_path / "b", 100)
        rows = read_rows(a / RESULTS)
        trained = [row for row in rows if row["host"] != "base"]
        longer = [{**row, "subject": "tom", "steps": steps} for row in trained for steps in (9, 12)]
        write_rows(a / RESULTS, rows + longer)
        write_rows(b / RESULTS, rows + longer)
        found = [pair.subject for pair in load_pairs(a, b)]
        assert found.count("rex") == found.count("tom") == 4
        write_rows(b / RESULTS, rows + [{**row, "host": "other"} for row in trained])
        with pytest.raises(BadInputError, match=r"several hosts \(other, recipe\)"):
            load_pairs(a, b)

    def test_a_mistyped_folder_is_not_made(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        b = results(tmp_path / "b", 1)
        assert cli.main(["preference", str(tmp_path / "typo"), str(b)]) == 2
        assert "output folder" in capsys.readouterr().err
        assert not (tmp_path / "typo").exists()

    def test_nothing_in_common_is_refused(self, tmp_path: Path) -> None:
        a = results(tmp_path / "a", 1)
        with pytest.raises(BadInputError, match="same subject, prompt and noise"):
            load_pairs(a, results(tmp_path / "b", 1, seeds=(8,)))
        (tmp_path / "c").mkdir()
        with pytest.raises(BadInputError, match="output folder"):
            load_pairs(a, tmp_path / "c")


class TestVotes:
    def test_a_second_answer_replaces_the_first(self, tmp_path: Path) -> None:
        votes = Votes(tmp_path / "v.db", "A", "B")
        votes.add([Vote("me", "p", "subject", "a"), Vote("me", "p", "text", "b")])
        votes.add([Vote("me", "p", "subject", "neither")])
        assert votes.all() == [Vote("me", "p", "subject", "neither"), Vote("me", "p", "text", "b")]
        assert Votes(tmp_path / "v.db", "A", "B").answered("me") == {"p"}

    def test_other_studies_and_other_files_are_refused(self, tmp_path: Path) -> None:
        Votes(tmp_path / "v.db", "A", "B")
        with pytest.raises(BadInputError, match="A against B"):
            Votes(tmp_path / "v.db", "A", "C")
        (tmp_path / "text.db").write_text("no database at all " * 100)
        for place in ("text.db", "text.db/below.db"):
            with pytest.raises(BadInputError, match="--votes"):
                Votes(tmp_path / place, "A", "B")

    def test_the_file_itself_refuses_nonsense(self, tmp_path: Path) -> None:
        votes = Votes(tmp_path / "v.db", "A", "B")
        with pytest.raises(sqlite3.IntegrityError):
            votes.add([Vote("me", "p", "taste", "a")])


class TestShares:
    def test_few_people_wilson_over_votes(self) -> None:
        votes = [Vote("v", f"p{i}", "text", "a" if i < 8 else "b") for i in range(10)]
        (share,) = preference_shares(votes)
        assert (share.a, share.b, share.neither, share.unit) == (0.8, 0.2, 0.0, "votes")
        # Wilson's interval of 8 of 10 at 95 %, from its formula (Wilson 1927).
        z, p, n = 1.959964, 0.8, 10
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        assert share.interval == pytest.approx((middle - half, middle + half), abs=1e-5)

    def test_from_eight_people_on_people_are_the_unit(self) -> None:
        votes = [
            Vote(f"v{v}", f"p{i}", "subject", "a" if v < 6 else "b")
            for v in range(8)
            for i in range(25)
        ]
        (share,) = preference_shares(votes)
        assert share.unit == "people" and share.a == 0.75
        # 200 votes of 8 people of one mind each are 8 answers: t with 7 degrees of freedom.
        error = np.std([1.0] * 6 + [0.0] * 2, ddof=1) / 8**0.5
        assert share.interval == pytest.approx((0.75 - 2.364624 * error, 1.0), abs=1e-4)

    def test_where_people_are_the_unit_each_counts_once(self) -> None:
        votes = [Vote("busy", f"p{i}", "text", "a") for i in range(93)]
        votes += [Vote(f"v{v}", "p0", "text", "b") for v in range(7)]
        (share,) = preference_shares(votes)
        assert (share.a, share.b, share.num_votes) == (1 / 8, 7 / 8, 100)
        assert share.interval[0] <= share.a <= share.interval[1]

    def test_lines(self) -> None:
        lines = list(share_lines(preference_shares([Vote("v", "p", "text", "a")]), "mine", "yours"))
        assert "mine 100.0%, yours 0.0%" in lines[1]
        assert list(share_lines([], "a", "b")) == ["no votes yet"]


def _ids(pairs: list[Pair]) -> list[str]:
    return [pair.pair_id for pair in pairs]


class TestPages:
    @pytest.fixture
    def votes(self, tmp_path: Path) -> Votes:
        return Votes(tmp_path / "votes.db", "A", "B")

    def test_a_person_answers_all_pages(self, pairs: list[Pair], votes: Votes) -> None:
        with TestClient(preference_app(pairs, votes, comparisons=3)) as client:
            for number in range(1, 4):
                page = client.get("/").text
                assert f"{number} of 3" in page
                pair_id = page.split('name="pair" value="')[1][:16]
                answer = {"pair": pair_id, "subject": "left", "text": "right"}
                assert client.post("/vote", data=answer).url.path == "/"
            assert "Thank you" in client.get("/").text
            voter = str(client.cookies["dreamfleet_voter"])
        kept = {(vote.pair, vote.question): vote.choice for vote in votes.all()}
        assert len(kept) == 6
        for pair_id in {pair for pair, _ in kept}:
            left, right = ("a", "b") if a_is_left(voter, pair_id) else ("b", "a")
            assert (kept[pair_id, "subject"], kept[pair_id, "text"]) == (left, right)

    def test_pictures_are_on_the_side_that_votes_count_for(
        self, pairs: list[Pair], votes: Votes
    ) -> None:
        with TestClient(preference_app(pairs, votes)) as client:
            client.get("/")
            voter = str(client.cookies["dreamfleet_voter"])
            for pair in pairs:
                left = client.get(f"/picture/{pair.pair_id}/left").content
                expected = pair.a if a_is_left(voter, pair.pair_id) else pair.b
                assert left == expected.read_bytes()
                assert client.get(f"/photo/{pair.pair_id}/0").content == pair.references[0]

    def test_nothing_tells_the_arms_apart(self, pairs: list[Pair], votes: Votes) -> None:
        with TestClient(preference_app(pairs, votes)) as client:
            response = client.get("/")
            shown = response.text + str(response.headers)
            assert not any(str(path.parent) in shown for pair in pairs for path in (pair.a, pair.b))
            assert "<i>sks</i>" not in response.text  # prompts are escaped

    def test_who_comes_back_by_a_link_is_known(self, pairs: list[Pair], votes: Votes) -> None:
        """Browsers keep a strict cookie back when a page of another site leads here (RFC 6265bis,
        section 5.2); the answer would then replace it.
        """
        with TestClient(preference_app(pairs, votes)) as client:
            cookie = client.get("/").headers["set-cookie"].lower()
        assert "samesite=lax" in cookie and "httponly" in cookie

    def test_forged_requests_are_refused(self, pairs: list[Pair], votes: Votes) -> None:
        good = {"pair": pairs[0].pair_id, "subject": "left", "text": "left"}
        with TestClient(preference_app(pairs, votes)) as client:
            assert client.post("/vote", data=good).status_code == 400  # no cookie yet
            assert client.get(f"/picture/{pairs[0].pair_id}/left").status_code == 404
            client.get("/")
            for wrong in ({"pair": "x"}, {"text": "a"}, {"subject": "x" * 5000}):
                assert client.post("/vote", data={**good, **wrong}).status_code == 400
            assert client.get("/picture/../left").status_code == 404
            assert client.get(f"/photo/{pairs[0].pair_id}/7").status_code == 404
            client.cookies.clear()
            client.cookies.set("dreamfleet_voter", "'; DROP TABLE votes;--")
            assert client.post("/vote", data=good).status_code == 400
        assert votes.all() == []

    def test_only_a_person_s_own_pages_are_answered(self, pairs: list[Pair], votes: Votes) -> None:
        with TestClient(preference_app(pairs, votes, comparisons=1)) as client:
            client.get("/")
            (own,) = order_for(str(client.cookies["dreamfleet_voter"]), _ids(pairs), 1)
            codes = {
                pair_id: client.post(
                    "/vote", data={"pair": pair_id, "subject": "left", "text": "left"}
                ).status_code
                for pair_id in _ids(pairs)
            }
        assert {pair_id for pair_id, code in codes.items() if code == 200} == {own}

    def test_order_and_sides_are_random_but_stay(self, pairs: list[Pair]) -> None:
        ids = [pair.pair_id for pair in pairs]
        orders = {tuple(order_for(f"{v:032x}", ids, 4)) for v in range(20)}
        assert len(orders) > 5 and all(set(order) == set(ids) for order in orders)
        assert order_for("a" * 32, ids, 2) == order_for("a" * 32, ids[::-1], 2)
        lefts = [a_is_left(f"{v:032x}", ids[0]) for v in range(400)]
        assert 140 < sum(lefts) < 260  # fair: 200 expected, deviation 10
