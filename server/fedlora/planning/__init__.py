"""What a run would take of its clients, its server and the way between them, told before anything is trained."""

from fedlora.planning.plan import Plan, plan_of
from fedlora.planning.server_cost import ServerCost
from fedlora.planning.traffic import Traffic

__all__ = ["Plan", "ServerCost", "Traffic", "plan_of"]
