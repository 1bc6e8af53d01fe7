"""A game as TextWorld reads it, so that the original engine can play what ours plays."""

from __future__ import annotations

from envs.alfworld.game import Game, Goal
from envs.alfworld.scenes import load_facts


def to_tw_pddl(game: Game, domain: str, grammar: str) -> dict[str, object]:
    """The content of a `game.tw-pddl` file (JSON).

    `domain` and `grammar` are the texts of alfworld's `data/alfred.pddl` and `data/alfred.twl2`,
    which are not shipped here.
    """
    return {
        "pddl_domain": domain,
        "grammar": grammar.replace("UNKNOWN GOAL", game.task),
        "pddl_problem": format_problem(game),
        "solvable": True,
        "walkthrough": None,
    }


def format_problem(game: Game) -> str:
    """The PDDL problem: objects, initial facts, goal.

    Names of kinds keep their case; PDDL ignores it.
    """
    facts = load_facts()
    locations = {r.location for r in game.receptacles if r.location} | {game.start}
    locations |= {location for item in game.items for location in item.locations}
    objects = ["agent1 - agent"]
    objects += [
        f"{kind}Type - otype"
        for kind in sorted({*facts.object_kinds, *(item.kind for item in game.items)})
    ]
    objects += [
        f"{kind}Type - rtype"
        for kind in sorted({*facts.receptacle_kinds, *(r.kind for r in game.receptacles)})
    ]
    objects += [f"{item.id} - object" for item in game.items]
    objects += [f"{r.id} - receptacle" for r in game.receptacles]
    objects += [f"{location} - location" for location in sorted(locations)]

    initial = [f"(atLocation agent1 {game.start})"]
    for r in game.receptacles:
        initial.append(f"(receptacleType {r.id} {r.kind}Type)")
        if r.location:
            initial.append(f"(receptacleAtLocation {r.id} {r.location})")
        initial += [
            f"({name} {r.id})"
            for name, holds in (("openable", r.openable), ("opened", r.opened))
            if holds
        ]
    for item in game.items:
        initial.append(f"(objectType {item.id} {item.kind}Type)")
        initial += [f"(inReceptacle {item.id} {place})" for place in item.receptacles]
        initial += [f"(objectAtLocation {item.id} {location})" for location in item.locations]
        initial += [f"({name} {item.id})" for name in sorted(item.affordances | item.state)]
        initial += [f"(inReceptacleObject {inner} {item.id})" for inner in item.inside]
    for kind in sorted({r.kind for r in game.receptacles}):
        initial += [
            f"(canContain {kind}Type {thing}Type)" for thing in sorted(game.contains.get(kind, ()))
        ]

    def block(name: str, lines: list[str]) -> str:
        return "\n".join((f"  (:{name}", *(f"    {line}" for line in lines), "  )"))

    goal = f"  (:goal {_format_goal(game.goal)})"
    parts = [block("objects", objects), block("init", initial), goal]
    return "\n".join(("(define (problem generated)", "  (:domain alfred)", *parts, ")"))


def _format_goal(goal: Goal) -> str:
    target = f"{goal.target}Type"
    if goal.task_type == "look_at_obj_in_light":
        return (
            "(and (exists (?o - object ?a - agent) "
            f"(and (objectType ?o {target}) (holds ?a ?o))) "
            "(exists (?t - object ?r - receptacle ?a - agent ?l - location) "
            f"(and (objectType ?t {goal.lamp}Type) (toggleable ?t) (isToggled ?t) "
            "(receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?t ?r))))"
        )
    inside = (
        f"(objectType ?o {target}) (receptacleType ?r {goal.receptacle}Type) (inReceptacle ?o ?r)"
    )
    if goal.task_type == "pick_two_obj_and_place":
        inside += (
            " (exists (?p - object) (and (not (= ?o ?p)) "
            f"(objectType ?p {target}) (inReceptacle ?p ?r)))"
        )
    inside += {
        "pick_clean_then_place_in_recep": " (cleanable ?o) (isClean ?o)",
        "pick_heat_then_place_in_recep": " (heatable ?o) (isHot ?o)",
        "pick_cool_then_place_in_recep": " (coolable ?o) (isCool ?o)",
    }.get(goal.task_type, "")
    return f"(exists (?r - receptacle) (exists (?o - object) (and {inside})))"
