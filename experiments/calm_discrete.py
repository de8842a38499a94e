"""CALM's discrete twin, K = 4 bytes: `python train.py --config experiments/calm_discrete.py data.path=FOLDER`.

The same size, data and time as calm.py, with a head of tokens in place of the autoencoder and the energy head.
"""

exp_config = {
    "run_name": "calm_discrete",
    "model": {"kind": "calm_discrete"},
    "data": {"validation_bytes": 512 * 1024},
    "max_steps": 2000,
    "max_minutes": 10,
    "scheduler_specific_kwargs": {"num_decay_steps": 800},
    "sample_prompt_for_generation": "It was a cold morning, and the ",
}
