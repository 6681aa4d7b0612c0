"""Image-text retrieval on COCO (Karpathy split) with UniAdapter on a frozen BLIP, re-ranked.

    python -m uniadapter_jax.convert model_base.pth weights/blip-base-384 --image-size=384 \
        --tokenizer=vocab.txt
    python -m uniadapter_jax.prepare --config=configs/coco.py --input=COCO --output=data/coco
    python -m uniadapter_jax.main --config=configs/coco.py --workdir=runs/coco

Arguments: method (uniadapter, lora, full, projection, zero_shot) and backbone, as in
--config=configs/coco.py:method=lora,backbone=weights/blip-base-384. With backbone=clip it is
Cross-Modal Adapter on ViT-B/32, r = 8, d_s = 16, its own validation split choosing the checkpoint
(--output=data/coco-clip). The paper's journal version reports R@1 64.2 from pictures to texts and
47.5 back with .5 M trained parameters; those are the paper's numbers, and its recipe for pictures
is not released: 224 pixels, batch 128, lr 1e-5 and 5 epochs are those of its videos.

Data: the pictures (train2014/, val2014/) and `dataset_coco.json`, or BLIP's
`coco_karpathy_{train,val,test}.json`: 113,287 / 5,000 / 5,000 pictures. All captions that the file
has are kept, which gives 25,010 texts in the test split; five per picture would give 25,000.
Weights: BLIP's pre-trained ViT-B, and `vocab.txt` of bert-base-uncased.

The recipe is the released one of UniAdapter: 384 pixels, not cropped; global batch 256, lr 1e-5,
6 epochs, AdamW with decay .05 on everything, cosine per epoch without warm-up; r = 512, queue
57,600, alpha .4, momentum .995; the best 256 candidates are scored by the matching head alone. The
start is ours: the released configs name a file that was fine-tuned for VQA. The released code tests
every epoch; here the last counts. No number of the paper for this set is known to us.
"""

from uniadapter_jax.config import recipes


def get_config(argument=None):
    """The config; see above. Pictures are stored as they are: almost all have that short side."""
    return recipes.pictures(argument, "coco", rerank_k=256, short_side=480)
