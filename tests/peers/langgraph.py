# /// script
# requires-python = ">=3.11"
# dependencies = ["langgraph>=1", "langchain-openai>=1"]
# ///
"""LangGraph with a user of LangChain as a node."""

import peer
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph

PROMPT = f"{peer.INTENT}\nTo end the conversation, say 'FINISHED'."


def swap(messages: list) -> list:
    """The messages as the user sees them."""
    others = {"human": AIMessage, "ai": HumanMessage}
    return [others[message.type](message.content) for message in messages]


def agent_node(state: MessagesState) -> dict:
    return {"messages": [AIMessage(peer.AGENT)]}


def goes_on(state: MessagesState) -> str:
    return END if "FINISHED" in state["messages"][-1].content else "agent"


def talk(url: str, prompt: str) -> list[str]:
    """What the user says."""
    user = ChatOpenAI(model=peer.MODEL, base_url=url, api_key="none")

    def user_node(state: MessagesState) -> dict:
        answer = user.invoke([SystemMessage(prompt), *swap(state["messages"])])
        return {"messages": [HumanMessage(answer.content)]}

    graph = StateGraph(MessagesState)
    graph.add_node("user", user_node)
    graph.add_node("agent", agent_node)
    graph.add_edge(START, "user")
    graph.add_edge("agent", "user")
    graph.add_conditional_edges("user", goes_on)
    first = AIMessage(peer.GREETING)
    done = graph.compile().invoke({"messages": [first]}, {"recursion_limit": 20})
    return [each.content for each in done["messages"] if each.type == "human"]


with peer.case("LangGraph", "langgraph", "base URL") as case:
    case.stop_phrase = "FINISHED"
    said = talk(peer.URL, PROMPT)
    assert said == [*peer.LINES, "FINISHED"], said
    case.end_seen = True
    case.note = "the stop phrase is in the prompt; a conditional edge ends the graph"

for ending in peer.endings("LangGraph", "langgraph"):
    with ending:
        talk(ending.url, peer.INTENT)
