"""Prose as a codec: words of three to six bytes, 22 bits each, and nearly all the time for bytes → codes → bytes.

`python train.py --config experiments/novels_codec.py data.path=FOLDER`, a folder as for novels.py. All bytes are
reconstructed at five raw bits each; the language model on top hardly learns in the time that is left.
"""

exp_config = {
    "run_name": "novels_codec",
    "data": {"validation_bytes": 128 * 1024},
    "max_steps": 2600,
    "max_minutes": 9,
    "scheduler_specific_kwargs": {"num_decay_steps": 1200},
    "model": {
        "autoencoder_fraction": 0.95,
        "levels": [
            {
                "compressor": {
                    "segmentation": {"min_tokens_per_code": 3, "target_tokens_per_code": 4.9},
                    "quantizer": {
                        "codes_per_segment": 2,
                        "fsq_levels": [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2],
                    },
                },
            },
        ],
    },
    "sample_prompt_for_generation": "It was a cold morning, and the ",
}
