"""`python -m bench`: how fast famulus is, beside what else there is. The last line is JSON."""
import asyncio, sys, tempfile, json
from pathlib import Path
from bench import plan as plans, streams, starts, pacing
from bench.stage import open_stage
async def main():
    p = getattr(plans, sys.argv[1]); ws = sys.argv[2].split(",")
    with tempfile.TemporaryDirectory() as f:
        async with open_stage(Path(f), p, litellm=Path("/tmp/w/b-litellm/bin/python")) as stage:
            for w in ws:
                import importlib
                r = await importlib.import_module("bench."+w).measure(stage, p)
                for k, v in r.figures.items(): print(f"{k:30}{v:12.2f}")
                for k, v in r.cores.items(): print(k, {a: round(b,2) for a,b in v.items()})
                for c in r.charts: print(c.steps, c.lines)
            print(stage.missing)
asyncio.run(main())
