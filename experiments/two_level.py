"""Two levels: the codes of segments are themselves joined in pairs, so the top transformer sees half as many."""

exp_config = {
    "run_name": "two_level",
    "model": {
        "levels": [
            {},
            {
                "compressor": {
                    "segmentation": {"rule": "fixed", "target_tokens_per_code": 2, "max_tokens_per_code": 2},
                    "quantizer": {"codes_per_segment": 6},
                    "value_width": 192,
                },
                "expander": {
                    "position_width": 192,
                    "predictor": {"width": 256, "layers": 2, "heads": 4, "window": 64, "mlp_width": 512},
                    "ngram_sizes": [1, 2],
                    "ngram_rows": 8192,
                    "match_sizes": [],
                },
            },
        ]
    },
}
