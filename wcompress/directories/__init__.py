"""Model folders, such as those of Hugging Face ↔ folders of archives.

names       which names an index may hold
folders     digests, copies, and folders that appear whole or not at all
source      finding the shards and the side files of a model folder
headers     names and shapes of all tensors of a model, without its weights
index       what a folder of archives says of itself
results     figures of a folder: sums over its archives
work        the folder that a pack works in, from which an interrupted one goes on
shard       packing one shard
engines     packing many: here, in processes (`processes`, `worker`), or with ray (`ray_engine`)
packing     the above, composed; and joining shards that were packed apart
opening     reading a folder of archives: all of it, or one tensor; checking it
unpacking   a folder of archives → a model folder
"""
