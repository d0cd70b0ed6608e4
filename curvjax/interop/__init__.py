"""Files of other programs: adapters, recipes, plans, and models whose projections are codes."""

from curvjax.interop.coded import CodedExport as CodedExport
from curvjax.interop.compressed_tensors import save_compressed_tensors as save_compressed_tensors
from curvjax.interop.folder import new_folder as new_folder
from curvjax.interop.folder import require_makeable as require_makeable
from curvjax.interop.folder import require_new as require_new
from curvjax.interop.folder import require_placeable as require_placeable
from curvjax.interop.gguf import save_gguf as save_gguf
from curvjax.interop.gguf_lora import save_gguf_lora as save_gguf_lora
from curvjax.interop.mlx import save_mlx as save_mlx
from curvjax.interop.nemotron import save_nemotron as save_nemotron
from curvjax.interop.peft import PeftAdapter as PeftAdapter
from curvjax.interop.peft import load_peft as load_peft
from curvjax.interop.peft import peft_config as peft_config
from curvjax.interop.peft import save_peft as save_peft
from curvjax.interop.peft import save_peft_config as save_peft_config
from curvjax.interop.peft_experts import save_peft_experts as save_peft_experts
from curvjax.interop.plans import PLAN_FILES as PLAN_FILES
from curvjax.interop.plans import lora_rules as lora_rules
from curvjax.interop.plans import lora_yaml as lora_yaml
from curvjax.interop.plans import plan_text as plan_text
from curvjax.interop.recipe import pruning_recipe as pruning_recipe
