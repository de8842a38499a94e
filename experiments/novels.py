"""The default model on prose: `python train.py --config experiments/novels.py data.path=FOLDER`.

FOLDER holds parquet, jsonl or text files; files named train*, validation* and test* are taken as those splits.
"""

exp_config = {
    "run_name": "novels",
    "data": {"validation_bytes": 2 * 1024 * 1024},
    "sample_prompt_for_generation": "It was a cold morning, and the ",
}
