"""Commands that pages print and benchmarks run: one text for both. Nothing is imported for it."""

SMOLLM2_RUN = r"""dvc exp run -S model.source=hf -S model.name_or_path=build/smollm2 \
  -S 'model.exits_after=[10,20]' -S tokenizer.kind=pretrained -S window=256 -S routing.keep_first=1 \
  -S corpus.calibration_fraction=0.02 -S corpus.test_fraction=0.01 -S pretrain.method=frozen \
  -S pretrain.frozen.tokens=65536 -S pretrain.steps=960 -S pretrain.batch_size=2 \
  -S pretrain.learning_rate=0.001 -S pretrain.evaluate_every=240 -S pretrain.evaluate_windows=16 \
  -S collect.batch_size=8 -S routing.batch_size=4 -S routing.control_windows=16 \
  -S 'routing.curve_fractions=[0.3,0.7]' -S routing.timing_batches=4"""
"""The pipeline on SmolLM2, over part of the default corpus, as docs/checkpoints.md prints it."""
