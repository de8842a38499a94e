"""The kinds of model in this folder: name → module and class, imported only when one is used."""

KINDS = {
    "hier_ae": "abstractinator.components.hierarchical.hierarchical_aelm:HierarchicalAELM",
    "glae": "abstractinator.components.glae.glae:Glae",
}
DEFAULT = "hier_ae"
