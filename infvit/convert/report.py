"""The report of a conversion: what was converted, and what was not and why."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """Outcome of `convert`: every attention found is either in `converted` or in `left_alone`.

    Attributes:
        attention: name of the attention that replaced the others.
        converted: names of the modules that were replaced.
        left_alone: name → reason of each attention that was not.
    """

    attention: str
    converted: list[str] = field(default_factory=list)
    left_alone: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.converted and not self.left_alone:
            return "found no attention: nothing converted"
        lines = [f"converted {len(self.converted)} to {self.attention}"]
        lines += [f"  {name}" for name in self.converted]
        lines.append(f"left alone {len(self.left_alone)}" if self.left_alone else "left alone none")
        for reason in dict.fromkeys(self.left_alone.values()):
            names = [name for name, why in self.left_alone.items() if why == reason]
            lines.append(f"  {', '.join(names)}: {reason}")
        return "\n".join(lines)
