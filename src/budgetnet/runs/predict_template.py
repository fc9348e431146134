"""What pictures show: python predict.py cat.jpg (needs onnxruntime, numpy and Pillow, and the files beside it)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

how = json.loads(Path(__file__).with_name("preprocessing.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))
for file in sys.argv[1:] or sys.exit("usage: python predict.py PICTURE ..."):
    try:
        img: Image.Image = Image.open(file)
        img = ImageOps.exif_transpose(img) if how["exif"] else img
        img.load()
    except OSError as error:
        sys.exit(f"{file} cannot be read as a picture ({error})")
    img = Image.fromarray((np.asarray(img).clip(0, 65535) >> 8).astype("uint8")) if img.mode[0] == "I" else img
    if img.has_transparency_data:
        img = Image.alpha_composite(Image.new("RGBA", img.size, "white"), img.convert("RGBA"))
    img = ImageOps.fit(img.convert(how["mode"]), how["size"][::-1], Image.Resampling.BILINEAR, 0.5 - how["crop"] / 2)
    pixels = (np.asarray(img, "float32").reshape(*how["size"], -1) * how["scale"] - how["mean"]) / how["std"]
    logits = session.run(None, {"images": pixels.transpose(2, 0, 1)[None].astype("float32")})[-1][0]
    odds = np.exp(logits - logits.max(0)).reshape(len(logits), -1)
    for share, name in sorted(zip((odds / odds.sum(0)).mean(1), how["classes"]), reverse=True)[:5]:
        print(f"{file}: {name} {100 * share:.2f} %")
