"""The kinds of model in this folder: name → module and class, imported only when one is used."""

KINDS = {
    "hier_ae": "abstractinator.components.hierarchical.hierarchical_aelm:HierarchicalAELM",
    "cta": "abstractinator.components.cta.continuous_text_autoencoder:ContinuousTextAutoencoder",
    "calm": "abstractinator.components.calm.calm:CALM",
    "calm_discrete": "abstractinator.components.calm.calm_discrete:CALMDiscrete",
    "glae": "abstractinator.components.glae.glae:Glae",
}
DEFAULT = "hier_ae"
