"""A judge: a LoRA for a small LLM, from labelled proposals.

    proposals/       the labelled proposals, by split and language: train, development, test
    configs/         what each shipped or measured judge was trained with
    proposals.py     what a line of them is; checks of the data are in checking.py
    config.py        the training file; chats.py reads what it names and makes batches
    trainer.py       the loop; base.py is the model, states.py what a run goes on from, adapter.py
                     what comes out

The prompts come ready: `python -m services.evaluation.examples` writes labelled proposals as the
very messages that the evaluation service sends. Knows nothing of stages, grammars or verdicts.
"""
