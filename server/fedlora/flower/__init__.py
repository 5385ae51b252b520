"""LoRA-FAIR, and every other method, for ServerApps of your own. Public.

    from fedlora.flower import LoraFairStrategy

    strategy = LoraFairStrategy(lora_config=config, fraction_train=0.5)     # FedAvg's arguments, and some more
    result = strategy.start(grid, ArrayRecord(get_peft_model_state_dict(model)), num_rounds=3)
    save_adapter(strategy.adapter, "adapter")                               # a PEFT folder

ClientApps stay as they are for FedAvg. `fedlora.training.flower_round.load_round` is for the methods that ask more of
them: to train one factor only, or to change the base weights.
"""

from fedlora.flower.replies import Refused
from fedlora.flower.strategy import FedAvgArguments, LoraFairStrategy, TrainReport

__all__ = ["FedAvgArguments", "LoraFairStrategy", "Refused", "TrainReport"]
