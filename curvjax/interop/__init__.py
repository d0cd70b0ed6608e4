"""Files of other programs: PEFT's adapters, llm-compressor's recipes."""

from curvjax.interop.folder import new_folder as new_folder
from curvjax.interop.folder import require_new as require_new
from curvjax.interop.peft import PeftAdapter as PeftAdapter
from curvjax.interop.peft import load_peft as load_peft
from curvjax.interop.peft import peft_config as peft_config
from curvjax.interop.peft import save_peft as save_peft
from curvjax.interop.peft import save_peft_config as save_peft_config
from curvjax.interop.recipe import pruning_recipe as pruning_recipe
