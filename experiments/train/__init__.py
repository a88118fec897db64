"""`semcal train --from MODEL`: SFT, DPO and GRPO of any model on any questions, and what all training shares."""
