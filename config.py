"""The settings of `python train.py`: the embedded preset, written out where people are most likely to change it.

Every key is optional and falls back to the defaults in abstractinator/config.py, where all of them stand with
their meaning; `abstractinator train --show` prints the whole. Single settings can also be given on the command
line: `python train.py learning_rate=1e-3 data.path=my_texts/ max_steps=2000`.
"""

exp_config = {
    "run_name": "default",
    "project_name": "abstractinator",
    # The text of Python's own standard library and language reference; for other text set "path" (a file or a
    # folder of parquet, jsonl or text) or "dataset_name" (of the Hugging Face hub).
    "data": {"path": None, "dataset_name": None, "text_column_name": "text"},
    "sequence_length": 1024,
    "batch_size": 8,
    "max_steps": 1300,
    "max_minutes": 7.2,
    "learning_rate": 2e-2,
    "muon_learning_rate": 0.04,
    "scheduler_type": "warmup_stable_decay",
    "warmup_steps": 10,
    "scheduler_specific_kwargs": {"num_decay_steps": 500},
    "log_interval": 10,
    "validation_interval": 650,
    "generation_interval": 650,
    "sample_prompt_for_generation": "def main(argv):\n",
    "checkpoint_interval": 175,
    "checkpoint_dir": "checkpoints",
    "resume_from_checkpoint": None,
}
