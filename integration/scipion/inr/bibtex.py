"""
@article{Debarnot2024IceTide,
  author  = {Debarnot, Valentin and Kishore, Vinith and Righetto, Ricardo D. and Dokmanic, Ivan},
  title   = {Ice-Tide: Implicit Cryo-ET Imaging and Deformation Estimation},
  journal = {arXiv},
  volume  = {2403.02182},
  year    = {2024},
  url     = {https://arxiv.org/abs/2403.02182}
}
@article{Kishore2025Localized,
  author  = {Kishore, Vinith and Debarnot, Valentin and Khorashadizadeh, AmirEhsan and Dokmanic, Ivan},
  title   = {Localized Supervised Learning for Cryo-ET Reconstruction},
  journal = {arXiv},
  volume  = {2509.00968},
  year    = {2025},
  url     = {https://arxiv.org/abs/2509.00968}
}
"""
