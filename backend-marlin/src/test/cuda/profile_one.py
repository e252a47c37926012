"""One forward for ncu: profile_one.py SHAPE T KIND NT WK [RANK N]"""
import sys

import bench_layer as B
import gpu
import layer as L

shape, T, kind, NT, wk = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
rank, n = (int(sys.argv[6]), int(sys.argv[7])) if len(sys.argv) > 6 else (0, 0)
m = B.Model(shape, L.U4, 1)
i = B.Inputs(m, T)
lay = L.Layer(m.p13, m.p2, T, m.k, m.H, m.I, dict(kind=(kind, kind), NT=NT, wk=(wk, wk)), slots=m.slots(rank, n) if n else None)
lay.forward(i.x[0], i.ids[0], i.tw[0], i.mapping(n)[0].to(gpu.DEV) if n else None)
B.torch.cuda.synchronize()
