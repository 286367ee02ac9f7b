"""Scores of training sequences against all queries, module by module (Eqs. 24, 30, 31).

With V_q the preconditioned gradient of query q [P, M], and a [B, T, M], g [B, T, P] of a batch:

    token score     s[b, t, q] = g[b, t]ᵀ V_q a[b, t]
    sequence score  s[b, q]    = sum over t

Three routes. `dense` forms the sequences' gradients DW, `factored` never does; they give the same
numbers to rounding. `shared` forms DW in a basis that all queries have in common, and is exact only
where that basis spans them. `cost` predicts what each takes, and chooses.
"""
