"""Splits as objects of the cluster hold them: which routes are meant, and what their weights say.

Pure. The same for VirtualServices and HTTPRoutes; what differs between them is a `Form`. It never changes an object
that it was given, and never decides a weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self

from canaryd.adapters.route_stamps import ADOPTED, JSON, annotations_of, decoded
from canaryd.errors import RouteError

_LISTED = 10  # names in an error


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────


class Role(Enum):
    """What a destination is to us."""

    STABLE = "stable"
    CANARY = "canary"
    SERVICE = "service"  # the service itself, before it is split


@dataclass(frozen=True, slots=True)
class Target:
    """What a destination names: a Service, and in a mesh perhaps a subset of it."""

    host: str  # in the one spelling of its Form
    subset: str = ""

    def __str__(self) -> str:
        """For messages, a Service of the namespace by its short name."""
        name, *rest = self.host.split(".")
        host = name if rest[1:2] == ["svc"] else self.host
        return f"{host}, subset {self.subset}" if self.subset else host


@dataclass(frozen=True, slots=True)
class Arms:
    """The two workloads and the service itself, as routes of `namespace` name them."""

    namespace: str
    stable: Target
    canary: Target
    service: Target

    def role(self, target: Target | None) -> Role | None:
        """None for a destination that is somebody else's."""
        roles = {self.service: Role.SERVICE, self.canary: Role.CANARY, self.stable: Role.STABLE}
        return roles.get(target) if target else None


@dataclass(frozen=True, slots=True)
class Place:
    """One route (or rule) of an object, and its list of destinations."""

    index: int
    name: str  # "" when it has none
    above: str  # JSON pointer of the route: "/spec/http/0"
    field: str  # of the list in it: "route"
    entries: tuple[JSON, ...]

    @property
    def pointer(self) -> str:
        return f"{self.above}/{self.field}"

    def __str__(self) -> str:
        """For messages: 'route "primary"', "http[0]"."""
        kind = self.above.split("/")[2]
        word = {"http": "route", "rules": "rule"}.get(kind, kind)
        return f"{word} {json.dumps(self.name, ensure_ascii=False)}" if self.name else f"{kind}[{self.index}]"


class Form(Protocol):
    """How one kind of object writes routes down."""

    @property
    def section(self) -> str:
        """The list of routes in `spec`."""
        ...

    def places(self, obj: JSON) -> tuple[Place, ...]:
        """Every route of the object, in its order; without destinations too."""
        ...

    def target(self, entry: JSON, namespace: str) -> Target | None:
        """What a destination names; None for what can be none of ours."""
        ...

    def called(self, entry: JSON) -> str:
        """A destination for messages."""
        ...

    def weight(self, entry: JSON) -> int:
        """Of one among several destinations. Raises RouteError when it is none."""
        ...

    def pointing(self, entry: JSON, target: Target, like: JSON | None = None) -> JSON:
        """A copy of the destination that names `target` instead, in the spelling of `like` where one is given."""
        ...

    def objection(self, obj: JSON, arms: Arms) -> str:
        """Why the object must not be split at all; else ""."""
        ...

    def hint(self, obj: JSON, arms: Arms) -> str:
        """Why no route has our destinations, where the object shows it; else ""."""
        ...


# ── what was adopted ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Origin:
    """One route as it was before it was adopted."""

    name: str
    index: int
    entry: JSON  # its only destination

    def of(self, place: Place) -> bool:
        """Whether this is that route: by its name where it has one, else by where it stands."""
        return place.name == self.name if self.name else not place.name and place.index == self.index


@dataclass(frozen=True, slots=True)
class Adopted:
    """What `adopt` leaves on an object for `restore`."""

    canary: str
    origins: tuple[Origin, ...]

    def __str__(self) -> str:
        routes = [{"name": o.name, "index": o.index, "entry": o.entry} for o in self.origins]
        return json.dumps({"canary": self.canary, "routes": routes}, separators=(",", ":"), ensure_ascii=False)

    def origin(self, place: Place) -> Origin | None:
        """What the route was: found by its name where it has one, else by where it stands."""
        return next((origin for origin in self.origins if origin.of(place)), None)

    @classmethod
    def of(cls, obj: JSON) -> Self | None:
        """None when nothing was adopted, or the annotation is not as canaryd wrote it."""
        said = decoded(annotations_of(obj).get(ADOPTED))
        try:
            origins = tuple(Origin(str(r["name"]), int(r["index"]), dict(r["entry"])) for r in said["routes"])
            return cls(str(said["canary"]), origins)
        except (KeyError, TypeError, ValueError):
            return None


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Split:
    """A route that names both workloads, and nothing else."""

    place: Place
    stable: int  # index of the destination
    canary: int
    weights: tuple[int, int]  # stable, canary; as they count

    def percent(self, expected: int | None) -> int:
        """Share of the canary, rounded up; a split that is not exactly the expected one is never reported as it.

        Raises RouteError when both weights are 0: then nobody is served.
        """
        both = sum(self.weights)
        if not both:
            raise RouteError(f"{self.place}: both weights are 0, so that no request can be served")
        hundredfold = 100 * self.weights[1]
        up = -(-hundredfold // both)
        return up if up != expected or hundredfold == expected * both else hundredfold // both


@dataclass(frozen=True, slots=True)
class Layout:
    """The routes of one object that are meant; at least one in all."""

    splits: tuple[Split, ...]
    plains: tuple[Place, ...]  # send everything to the service itself

    def percent(self, expected: int | None) -> int | None:
        """Percent for the canary. Where routes disagree: the largest of those that differ from the expected one."""
        return foremost((split.percent(expected) for split in self.splits), expected)


def foremost(weights: Iterable[int], expected: int | None) -> int | None:
    """The one that a person must hear of: the largest that is not the expected one; None of none."""
    seen = set(weights)
    return max(seen - {expected} or seen, default=None)


def read(form: Form, obj: JSON, names: Sequence[str], arms: Arms) -> Layout:
    """The routes called `names`; without names every route that has both destinations.

    Routes that name the service itself alone are meant where no route has both, or where canaryd has adopted them once.
    Raises RouteError, without the name of the object, when none is meant or one cannot be split.
    """
    if objection := form.objection(obj, arms):
        raise RouteError(objection)
    if names:
        return _named(form, obj, names, arms)
    places = form.places(obj)
    splits = tuple(_split(form, place, arms) for place in places if _has_both(form, place, arms))
    plains = tuple(place for place in places if _is_plain(form, place, arms))
    if splits:
        kept = Adopted.of(obj)
        plains = tuple(place for place in plains if kept and kept.origin(place))
    if not splits and not plains:
        raise RouteError(form.hint(obj, arms) or _nothing(form, places, arms))
    return Layout(splits, plains)


def _named(form: Form, obj: JSON, names: Sequence[str], arms: Arms) -> Layout:
    places = form.places(obj)
    known = {place.name for place in places if place.name}
    if missing := [name for name in names if name not in known]:
        there = _several(sorted(json.dumps(name, ensure_ascii=False) for name in known)) or "none that has a name"
        raise RouteError(f"there is no route {json.dumps(missing[0], ensure_ascii=False)}; there is {there}")
    meant = [place for place in places if place.name in names]
    if any(not place.entries for place in meant) and (hint := form.hint(obj, arms)):
        raise RouteError(hint)
    plains = tuple(place for place in meant if _is_plain(form, place, arms))
    return Layout(tuple(_split(form, place, arms) for place in meant if place not in plains), plains)


def roles_in(form: Form, place: Place, arms: Arms) -> list[Role | None]:
    return [arms.role(form.target(entry, arms.namespace)) for entry in place.entries]


def _has_both(form: Form, place: Place, arms: Arms) -> bool:
    return {Role.STABLE, Role.CANARY} <= set(roles_in(form, place, arms))


def _is_plain(form: Form, place: Place, arms: Arms) -> bool:
    return roles_in(form, place, arms) == [Role.SERVICE]


def _split(form: Form, place: Place, arms: Arms) -> Split:
    roles = roles_in(form, place, arms)
    for role, target in ((Role.STABLE, arms.stable), (Role.CANARY, arms.canary)):
        if role not in roles:
            there = _several([form.called(entry) for entry in place.entries]) or "nowhere"
            raise RouteError(f"{place} does not send to {target}, only to {there}; add it with weight 0")
        if roles.count(role) > 1:
            raise RouteError(f"{place} names {target} twice; its weight is ambiguous")
    weights = [form.weight(entry) for entry in place.entries]
    if len(roles) > 2:
        other = next(i for i, role in enumerate(roles) if role not in (Role.STABLE, Role.CANARY))
        share = f"{100 * weights[other] / sum(weights):.3g} %" if sum(weights) else "requests"
        name = form.called(place.entries[other])
        raise RouteError(f"{place} also sends {share} to {name}; canaryd splits between two")
    stable, canary = roles.index(Role.STABLE), roles.index(Role.CANARY)
    return Split(place, stable, canary, (weights[stable], weights[canary]))


def _nothing(form: Form, places: Sequence[Place], arms: Arms) -> str:
    there = list(dict.fromkeys(form.called(entry) for place in places for entry in place.entries))
    return (
        f"no route sends to both {arms.stable} and {arms.canary}, or to {arms.service} "
        f"alone; destinations there: {_several(there) or 'none'}"
    )


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")
